// Kubernetes in one binary: the component is named by the file the binary is called by, or by its first argument.
// The API server brings its etcd with it, which keeps its data and its two sockets in the working directory.
package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

var components = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserverWithEtcd,
	"kube-controller-manager": controllers.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kube-proxy":              proxy.NewProxyCommand,
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
}

func main() {
	name := filepath.Base(os.Args[0])
	if components[name] == nil && name != "kubectl" && len(os.Args) > 1 {
		name, os.Args = os.Args[1], os.Args[1:]
	}
	if name == "kubectl" {
		if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
			util.CheckErr(err)
		}
		return
	}
	command := components[name]
	if command == nil {
		fmt.Fprintln(os.Stderr, "usage: kube-apiserver|kube-controller-manager|kube-scheduler|kube-proxy|kubelet|kubectl [ARGUMENT...]")
		os.Exit(2)
	}
	os.Exit(cli.Run(command()))
}

// apiserverWithEtcd starts etcd unless --help or --version is all that is asked for.
func apiserverWithEtcd() *cobra.Command {
	if len(os.Args) > 2 {
		os.Args = append(os.Args, "--etcd-servers="+etcd())
	}
	return apiserver.NewAPIServerCommand()
}

// etcd serves on sockets in the working directory and syncs nothing to the disk: its data outlives the process, not the machine.
func etcd() string {
	clients, peers := []url.URL{{Scheme: "unix", Host: "etcd.sock:0"}}, []url.URL{{Scheme: "unix", Host: "peer.sock:0"}}
	config := embed.NewConfig()
	config.Dir, config.LogLevel, config.UnsafeNoFsync = "etcd", "error", true
	config.ListenClientUrls, config.AdvertiseClientUrls = clients, clients
	config.ListenPeerUrls, config.AdvertisePeerUrls = peers, peers
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	server, err := embed.StartEtcd(config)
	if err != nil {
		fmt.Fprintln(os.Stderr, "etcd does not start in this folder:", err)
		os.Exit(1)
	}
	<-server.Server.ReadyNotify()
	return clients[0].String()
}
