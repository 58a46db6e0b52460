// The Kubernetes programs of a worker node in one file.
package main

import (
	"context"

	"github.com/spf13/cobra"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	"kimage.dev/kubernetes/multicall"
)

func main() {
	multicall.Main(multicall.Programs{
		"kube-proxy": multicall.Daemon(proxy.NewProxyCommand),
		"kubelet":    multicall.Daemon(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
	})
}
