// Command cluster is what tests need of a cluster: Kubernetes' API server and its store, without nodes or controllers.
// It is whichever of the two it is called by the name of.
package main

import (
	"os"
	"path/filepath"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	if filepath.Base(os.Args[0]) == "etcd" {
		etcdmain.Main(os.Args)
	} else {
		os.Exit(cli.Run(app.NewAPIServerCommand()))
	}
}
