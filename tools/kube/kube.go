// Package kube holds nothing: `go build` takes the programs from the modules that go.mod names.
package kube
