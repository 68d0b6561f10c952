package machine

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// LoopbackTarget says whether an address can only mean this machine: a loopback address or "localhost", with or without a port, or a
// path of a unix socket. Other names are not looked up, since the answer may be another one a moment later.
func LoopbackTarget(addr string) bool {
	if strings.HasPrefix(addr, "/") || strings.HasPrefix(addr, "@") || strings.HasPrefix(addr, "unix:") {
		return true
	}
	host := addr
	if h, _, err := net.SplitHostPort(addr); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(strings.TrimSuffix(host, "."), "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// PIDListening finds the process that listens on a local TCP address, host:port. Of several that share the socket it names the oldest:
// the parent of those that inherited it, and not systemd, which holds the sockets it activates others with. It is a best effort:
// processes of other users are not seen without their rights.
func PIDListening(addr string) (pid int, ok bool) {
	host, portText, err := net.SplitHostPort(addr)
	if err != nil {
		return 0, false
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return 0, false
	}
	if host == "" || strings.EqualFold(host, "localhost") {
		host = "127.0.0.1"
	}
	want, err := netip.ParseAddr(host)
	if err != nil {
		return 0, false
	}
	var exact, any []string // inodes of sockets on the very address, and on all addresses
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range bytes.Lines(text) {
			local, inode, ok := parseListener(string(line))
			switch {
			case !ok || uint64(local.Port()) != port:
			case local.Addr() == want.Unmap():
				exact = append(exact, "socket:["+inode+"]")
			case local.Addr().IsUnspecified() && (local.Addr().Is6() || want.Unmap().Is4()):
				any = append(any, "socket:["+inode+"]")
			}
		}
	}
	if len(exact) == 0 {
		exact = any
	}
	if len(exact) == 0 {
		return 0, false
	}
	return oldestHolder(exact)
}

// parseListener reads a line of /proc/net/tcp or tcp6; ok is false unless the socket listens. Addresses are words in the machine's byte
// order; ports are numbers.
func parseListener(line string) (local netip.AddrPort, inode string, ok bool) {
	const listening = "0A" // TCP_LISTEN
	f := strings.Fields(line)
	if len(f) < 10 || f[3] != listening {
		return local, "", false
	}
	host, port, _ := strings.Cut(f[1], ":")
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw) != 4 && len(raw) != 16 {
		return local, "", false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return local, "", false
	}
	a, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), f[9], true
}

// oldestHolder finds the process that has one of the sockets open and started first.
func oldestHolder(sockets []string) (pid int, ok bool) {
	var r reader
	var best stat
	for _, p := range r.pids("/proc") {
		dir := "/proc/" + strconv.Itoa(p) + "/fd"
		names, err := readNames(dir)
		if err != nil {
			continue // gone, or not ours
		}
		if !slices.ContainsFunc(names, func(fd string) bool {
			link, err := os.Readlink(dir + "/" + fd)
			return err == nil && slices.Contains(sockets, link)
		}) {
			continue
		}
		s, err := r.stat("/proc", p)
		if err != nil || p == 1 && s.name == "systemd" {
			continue
		}
		if !ok || s.started < best.started || s.started == best.started && s.pid < best.pid {
			best, ok = s, true
		}
	}
	return best.pid, ok
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}
