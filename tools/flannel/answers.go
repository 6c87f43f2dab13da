// What flannel's own code makes of network configs, lease keys and lease values: one JSON value a line in
// ({"config": ...}, {"key": ...} or {"value": ...}, each a text), one answer a line out.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
)

type question struct {
	Config *string `json:"config"`
	Key    *string `json:"key"`
	Value  *string `json:"value"`
}

func config(text string) (map[string]any, error) {
	parsed, err := subnet.ParseConfig(text)
	if err != nil {
		return nil, err
	}
	if err := subnet.CheckNetworkConfig(parsed); err != nil {
		return nil, err
	}
	answer := map[string]any{"backend": parsed.BackendType, "nftables": parsed.EnableNFTables}
	if parsed.EnableIPv4 {
		answer["v4"] = []string{parsed.Network.String(), fmt.Sprint(parsed.SubnetLen),
			parsed.SubnetMin.String(), parsed.SubnetMax.String()}
	}
	if parsed.EnableIPv6 {
		answer["v6"] = []string{parsed.IPv6Network.String(), fmt.Sprint(parsed.IPv6SubnetLen),
			parsed.IPv6SubnetMin.String(), parsed.IPv6SubnetMax.String()}
	}
	return answer, nil
}

func key(text string) (map[string]any, error) {
	v4, v6 := subnet.ParseSubnetKey(text)
	if v4 == nil {
		return nil, fmt.Errorf("no subnet key")
	}
	answer := map[string]any{"v4": v4.String()}
	if v6 != nil {
		answer["v6"] = v6.String()
	}
	return answer, nil
}

func value(text string) (map[string]any, error) {
	attrs := lease.LeaseAttrs{}
	if err := json.Unmarshal([]byte(text), &attrs); err != nil {
		return nil, err
	}
	answer := map[string]any{"ip": attrs.PublicIP.String(), "backend": attrs.BackendType, "data": attrs.BackendData,
		"data6": attrs.BackendV6Data}
	if attrs.PublicIPv6 != nil {
		answer["ip6"] = attrs.PublicIPv6.String()
	}
	return answer, nil
}

func main() {
	questions := bufio.NewScanner(os.Stdin)
	questions.Buffer(nil, 1<<20)
	answers := json.NewEncoder(os.Stdout)
	answers.SetEscapeHTML(false)
	for questions.Scan() {
		asked := question{}
		if err := json.Unmarshal(questions.Bytes(), &asked); err != nil {
			panic(err)
		}
		var answer map[string]any
		var err error
		switch {
		case asked.Config != nil:
			answer, err = config(*asked.Config)
		case asked.Key != nil:
			answer, err = key(*asked.Key)
		default:
			answer, err = value(*asked.Value)
		}
		if err != nil {
			answer = map[string]any{"error": err.Error()}
		}
		if err := answers.Encode(answer); err != nil {
			panic(err)
		}
	}
}
