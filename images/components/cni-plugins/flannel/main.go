// The CNI plugin "flannel": reads what flanneld wrote about this node's subnet and hands on to another plugin
// ("bridge" unless the configuration says otherwise) with host-local addresses of that subnet.
//
// Upstream's plugin is a module that proxies don't carry. This one understands the same configuration
// (https://www.cni.dev/plugins/current/meta/flannel/) and keeps its state where upstream's keeps it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/pkg/utils/buildversion"
)

const (
	defaultSubnetFile = "/run/flannel/subnet.env"
	defaultDataDir    = "/var/lib/cni/flannel"
)

// configuration is the plugin's part of a network configuration.
type configuration struct {
	types.NetConf
	SubnetFile    string                 `json:"subnetFile"`
	DataDir       string                 `json:"dataDir"`
	Delegate      map[string]interface{} `json:"delegate"`
	IPAM          map[string]interface{} `json:"ipam,omitempty"`
	RuntimeConfig map[string]interface{} `json:"runtimeConfig,omitempty"`
}

// subnet is what flanneld says about this node.
type subnet struct {
	networks []string
	own      []string
	mtu      uint64
	ipMasq   bool
}

func main() {
	functions := skel.CNIFuncs{Add: add, Check: check, Del: del, Status: status}
	skel.PluginMainFuncs(functions, version.All, buildversion.BuildString("flannel"))
}

func parse(bytes []byte) (*configuration, error) {
	c := &configuration{SubnetFile: defaultSubnetFile, DataDir: defaultDataDir}
	if err := json.Unmarshal(bytes, c); err != nil {
		return nil, fmt.Errorf("read network configuration: %w", err)
	}
	if c.Delegate == nil {
		c.Delegate = map[string]interface{}{}
	}
	if kind, ok := c.Delegate["type"]; ok {
		if _, ok := kind.(string); !ok {
			return nil, errors.New("'delegate' dictionary, if present, must have (string) 'type' field")
		}
	}
	for _, key := range []string{"name", "ipam"} {
		if _, ok := c.Delegate[key]; ok {
			return nil, fmt.Errorf("'delegate' dictionary must not have '%s' field, it'll be set by flannel", key)
		}
	}
	return c, nil
}

func readSubnet(path string) (*subnet, error) {
	bytes, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("flanneld has not written this node's subnet yet: %w", err)
	}
	s := &subnet{}
	for _, line := range strings.Split(string(bytes), "\n") {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			continue
		}
		switch key {
		case "FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK":
			s.networks = append(s.networks, strings.Split(value, ",")...)
		case "FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET":
			// flanneld writes the gateway's address; host-local wants the network's.
			_, network, err := net.ParseCIDR(value)
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", path, key, err)
			}
			s.own = append(s.own, network.String())
		case "FLANNEL_MTU":
			if s.mtu, err = strconv.ParseUint(value, 10, 32); err != nil {
				return nil, fmt.Errorf("%s: %s: %w", path, key, err)
			}
		case "FLANNEL_IPMASQ":
			s.ipMasq = value == "true"
		}
	}
	if len(s.networks) == 0 || len(s.own) == 0 || s.mtu == 0 {
		return nil, fmt.Errorf("%s lacks FLANNEL_NETWORK, FLANNEL_SUBNET or FLANNEL_MTU", path)
	}
	return s, nil
}

// delegate is the configuration for the plugin that does the work.
func (c *configuration) delegate(s *subnet) map[string]interface{} {
	d := c.Delegate
	setDefault := func(key string, value interface{}) {
		if _, ok := d[key]; !ok {
			d[key] = value
		}
	}
	d["name"] = c.Name
	if c.CNIVersion != "" {
		d["cniVersion"] = c.CNIVersion
	}
	if c.RuntimeConfig != nil {
		d["runtimeConfig"] = c.RuntimeConfig
	}
	setDefault("type", "bridge")
	// One of the two masquerades, never both.
	setDefault("ipMasq", !s.ipMasq)
	setDefault("mtu", s.mtu)
	if d["type"] == "bridge" {
		setDefault("isGateway", true)
	}
	d["ipam"] = c.addresses(s)
	return d
}

func (c *configuration) addresses(s *subnet) map[string]interface{} {
	ipam := c.IPAM
	if ipam == nil {
		ipam = map[string]interface{}{}
	}
	if _, ok := ipam["type"]; !ok {
		ipam["type"] = "host-local"
	}
	var ranges, routes []interface{}
	for _, own := range s.own {
		ranges = append(ranges, []interface{}{map[string]interface{}{"subnet": own}})
	}
	for _, network := range s.networks {
		routes = append(routes, map[string]interface{}{"dst": network})
	}
	if given, ok := ipam["routes"].([]interface{}); ok {
		routes = append(given, routes...)
	}
	ipam["ranges"], ipam["routes"] = ranges, routes
	return ipam
}

func add(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	s, err := readSubnet(c.SubnetFile)
	if err != nil {
		return err
	}
	delegate := c.delegate(s)
	bytes, err := json.Marshal(delegate)
	if err != nil {
		return err
	}
	// Kept for DEL, when subnet.env may say something else.
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(c.DataDir, args.ContainerID), bytes, 0o600); err != nil {
		return err
	}
	result, err := invoke.DelegateAdd(context.TODO(), delegate["type"].(string), bytes, nil)
	if err != nil {
		return fmt.Errorf("add by %s: %w", delegate["type"], err)
	}
	return result.Print()
}

// kept returns what add wrote down, and the plugin that it was for; nothing when there is nothing.
func kept(args *skel.CmdArgs) (path, plugin string, bytes []byte, err error) {
	c, err := parse(args.StdinData)
	if err != nil {
		return "", "", nil, err
	}
	path = filepath.Join(c.DataDir, args.ContainerID)
	bytes, err = os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return path, "", nil, nil
	}
	if err != nil {
		return "", "", nil, err
	}
	delegate := types.NetConf{}
	if err := json.Unmarshal(bytes, &delegate); err != nil {
		return "", "", nil, fmt.Errorf("%s: %w", path, err)
	}
	return path, delegate.Type, bytes, nil
}

func check(args *skel.CmdArgs) error {
	path, plugin, bytes, err := kept(args)
	if err != nil {
		return err
	}
	if bytes == nil {
		return fmt.Errorf("%s does not exist", path)
	}
	c := map[string]interface{}{}
	current := map[string]interface{}{}
	if err := json.Unmarshal(bytes, &c); err != nil {
		return err
	}
	if err := json.Unmarshal(args.StdinData, &current); err != nil {
		return err
	}
	if previous, ok := current["prevResult"]; ok {
		c["prevResult"] = previous
	}
	if bytes, err = json.Marshal(c); err != nil {
		return err
	}
	return invoke.DelegateCheck(context.TODO(), plugin, bytes, nil)
}

// del succeeds when there is nothing to remove: the runtime may call it twice.
func del(args *skel.CmdArgs) error {
	path, plugin, bytes, err := kept(args)
	if err != nil || bytes == nil {
		return err
	}
	if err := invoke.DelegateDel(context.TODO(), plugin, bytes, nil); err != nil {
		return fmt.Errorf("remove by %s: %w", plugin, err)
	}
	return os.Remove(path)
}

// status tells the runtime that pods can get addresses as soon as flanneld has said which.
func status(args *skel.CmdArgs) error {
	c, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	if _, err := readSubnet(c.SubnetFile); err != nil {
		return types.NewError(50, err.Error(), "")
	}
	return nil
}
