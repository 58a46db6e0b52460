// Package udp registers no backend: flannel's userspace udp backend needs cgo, and a network that asks for it is
// told "unknown backend type: udp" instead of losing packets.
package udp
