// Package multicall makes one program of several: the name it is called by says which one it is.
package multicall

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"

	// What every Kubernetes program registers: JSON logs and the metrics of its client and version.
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
)

// Programs are the mains by name. Only the one that is called builds its command.
type Programs map[string]func()

// Main runs the program that the process is named after.
func Main(programs Programs) {
	name := filepath.Base(os.Args[0])
	run, known := programs[name]
	if !known {
		names := make([]string, 0, len(programs))
		for name := range programs {
			names = append(names, name)
		}
		slices.Sort(names)
		fmt.Fprintf(os.Stderr, "%s: not a name of this program; call it as one of %v\n", name, names)
		os.Exit(2)
	}
	run()
}

// Daemon is the main of every Kubernetes program but kubectl.
func Daemon(command func() *cobra.Command) func() {
	return func() { os.Exit(cli.Run(command())) }
}
