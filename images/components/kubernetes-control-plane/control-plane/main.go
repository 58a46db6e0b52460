// All Kubernetes programs of a control-plane node in one file: they share most of their code, so one program is a
// quarter of the size of six.
package main

import (
	"context"
	"os"

	// Time zones of CronJobs, as upstream's kube-apiserver and kube-controller-manager have them.
	_ "time/tzdata"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	// kubectl's exec and OIDC credential plugins.
	_ "k8s.io/client-go/plugin/pkg/client/auth"

	"kimage.dev/kubernetes/multicall"
)

func main() {
	multicall.Main(multicall.Programs{
		"kube-apiserver":          multicall.Daemon(apiserver.NewAPIServerCommand),
		"kube-controller-manager": multicall.Daemon(controllermanager.NewControllerManagerCommand),
		"kube-proxy":              multicall.Daemon(proxy.NewProxyCommand),
		"kube-scheduler":          multicall.Daemon(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
		"kubectl":                 runKubectl,
		"kubelet":                 multicall.Daemon(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
	})
}

// runKubectl is upstream's main: -v must hold before flags are parsed, and errors are printed in kubectl's way.
func runKubectl() {
	_, _ = logs.GlogSetter(kubectl.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err)
	}
}
