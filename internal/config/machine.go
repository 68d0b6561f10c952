package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// reservedDescriptors are what the process needs besides client and next-hop connections, at the least: segments, logs, admin
// connections, room for what libraries open, and what a few loops need.
const reservedDescriptors = 256

// serviceDescriptors is the most connections that a hook, a milter or a service that checks logins has open.
const serviceDescriptors = 64

// dnsDescriptors is the most sockets that a DNS server has open, those that are being replaced among them; usualServers is how many a
// resolv.conf(5) names at most.
const (
	dnsDescriptors = 24
	usualServers   = 3
)

// natsDescriptors is the most connections to NATS servers, those that are being replaced among them.
const natsDescriptors = 16

// Descriptors is how many file descriptors the process may need.
func (c *Config) Descriptors() uint64 { return c.descriptorsFor(runtime.NumCPU()) }

// descriptorsFor counts with so many event loops. Each has an epoll and an event descriptor, a socket per listener, and at times a
// connection over the limit that it is refusing.
func (c *Config) descriptorsFor(loops int) uint64 {
	reserved := max(reservedDescriptors, reservedDescriptors*3/4+loops*(3+len(c.Listen)))
	services := len(c.Hook) + len(c.Milter)
	for _, store := range [...]string{c.Auth.HTTP, c.Auth.Dovecot} {
		if store != "" {
			services++
		}
	}
	if c.AsksDNS() {
		reserved += dnsDescriptors * max(len(c.DNS.Servers), usualServers)
	}
	if c.UsesJetStream() {
		reserved += natsDescriptors
	}
	if c.HasHTTP() {
		reserved += c.HTTP.Connections
	}
	return uint64(c.Limits.Connections) + uint64(c.Relay.Connections) + uint64(reserved) + uint64(services*serviceDescriptors)
}

// CheckMachine asks whether this machine offers what the configuration needs. It changes nothing but the process's own limit of open
// files, which it raises. busy names the listen addresses that are in use, by a running fastedge perhaps. When the limit of open files
// can't be raised far enough, connections from the default (limits.connections, http.connections) are lowered to what fits; connections
// that were asked for are an error.
func (c *Config) CheckMachine() (warnings []Problem, busy []string, err error) {
	l := loader{cfg: c, doc: c.doc, bad: map[string]bool{}}
	if err := checkWritable(c.StateDir); err != nil {
		l.reportAt("state_dir", err.Error())
	}
	l.files()
	if warning := l.nameServers("/etc/resolv.conf"); warning != nil {
		warnings = append(warnings, *warning)
	}
	warnings = append(warnings, l.descriptors(raiseDescriptorLimit(c.Descriptors()))...)
	for i, one := range c.Listen {
		if l.tryBind(listenKey(i, "address"), one.Address) {
			busy = append(busy, one.Address.String())
		}
	}
	if c.Admin.HTTP.Network != "" && l.tryBind("admin.http", c.Admin.HTTP) {
		busy = append(busy, c.Admin.HTTP.String())
	}
	return warnings, busy, l.problems.OrNil()
}

// files looks whether the files that are named are there and can be read. What is in them is judged by those who load them.
func (l *loader) files() {
	readable := func(key, path string) {
		if path == "" {
			return
		}
		if err := checkReadable(path); err != nil {
			l.reportAt(key, err.Error())
		}
	}
	for i, pair := range l.cfg.TLS.Certificates {
		readable(certificateKey(i, "cert"), pair.Cert)
		readable(certificateKey(i, "key"), pair.Key)
	}
	readable("tls.client_ca", l.cfg.TLS.ClientCA)
	readable("auth.users", l.cfg.Auth.Users)
	readable("auth.keys", l.cfg.Auth.Keys)
	readable("domains.recipients", l.cfg.Domains.Recipients)
	js := &l.cfg.Queue.JetStream
	readable("queue.jetstream.credentials", js.Credentials)
	readable("queue.jetstream.ca", js.CA)
	readable("queue.jetstream.cert", js.Cert)
	readable("queue.jetstream.key", js.Key)
}

// nameServers warns of a machine without DNS, if something will be looked up there. That is no error: mail goes on, with temperror as result of SPF.
func (l *loader) nameServers(path string) *Problem {
	if c := l.cfg; !c.AsksDNS() || len(c.DNS.Servers) > 0 {
		return nil
	}
	data, err := os.ReadFile(path)
	why := "it names no server"
	if err != nil {
		why = cause(err).Error()
	}
	for line := range strings.Lines(string(data)) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "nameserver" {
			return nil
		}
	}
	return &Problem{Key: "dns.servers", Message: fmt.Sprintf("dns.servers: not set, and %s: %s. A server on this machine is asked (127.0.0.1:53)", path, why)}
}

// checkReadable says why a file can't be read.
func checkReadable(path string) error {
	info, err := os.Stat(path) // before it is opened: opening a pipe would wait
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", path, cause(err))
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, cause(err))
	}
	return f.Close()
}

// checkWritable says why files can't be made in dir, or dir itself not.
func checkWritable(dir string) error {
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		switch {
		case errors.Is(err, os.ErrNotExist) && at != filepath.Dir(at):
			continue // it will be made: look at its parent
		case err != nil:
			return fmt.Errorf("%s: %w", at, cause(err))
		case !info.IsDir():
			return fmt.Errorf("%s is not a directory", at)
		}
		const write, search = 2, 1
		if err := syscall.Access(at, write|search); err != nil {
			return fmt.Errorf("%s is not writable: %w", at, err)
		}
		return nil
	}
}

// cause takes the operation and path off an error that is shown beside its key.
func cause(err error) error {
	var path *os.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// raiseDescriptorLimit raises the soft limit of open files to need, and the hard one where that is allowed. It gives the limit then.
func raiseDescriptorLimit(need uint64) uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	if limit.Cur >= need {
		return limit.Cur
	}
	wanted := syscall.Rlimit{Cur: need, Max: max(limit.Max, need)}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &wanted) == nil {
		return need
	}
	wanted = syscall.Rlimit{Cur: limit.Max, Max: limit.Max}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &wanted) == nil {
		return limit.Max
	}
	return limit.Cur
}

// descriptors holds the connections against the limit of open files. gnet ends the whole engine when accept finds no descriptor
// left, so this is no matter of degree.
func (l *loader) descriptors(limit uint64) (warnings []Problem) {
	c := l.cfg
	need := c.Descriptors()
	if limit >= need {
		return nil
	}
	type connections struct {
		key string
		n   *int
	}
	smtp, http := connections{"limits.connections", &c.Limits.Connections}, connections{"http.connections", &c.HTTP.Connections}
	all := []connections{http, smtp}
	if !c.HasHTTP() {
		all = all[1:]
	}
	var may []connections // be lowered
	blamed := smtp        // the most of those that may not
	for _, one := range all {
		if c.Origin(one.key).Kind == "default" {
			may = append(may, one)
		} else if one == http || *one.n > *blamed.n || c.Origin(blamed.key).Kind == "default" {
			blamed = one
		}
	}
	left := int64(limit) - int64(need)
	for _, one := range may {
		left += int64(*one.n)
	}
	if len(may) == 0 || left < 1 || len(may) == 2 && left < 4 {
		l.reportAt(blamed.key, fmt.Sprintf(
			"%d connections need %d file descriptors and the limit is %d: raise it (ulimit -n, LimitNOFILE=) or lower the connections",
			*blamed.n, need, limit))
		return nil
	}
	for i, one := range may { // HTTP gets a quarter, and SMTP what that leaves
		fits := left
		if i+1 < len(may) {
			fits = left / 4
		}
		fits = min(fits, int64(*one.n))
		left -= fits
		if fits < int64(*one.n) {
			warnings = append(warnings, Problem{Key: one.key, Message: fmt.Sprintf(
				"%s: lowered from %d to %d: the limit of open files is %d (ulimit -n, LimitNOFILE=)", one.key, *one.n, fits, limit)})
			*one.n = int(fits)
		}
	}
	return warnings
}

// tryBind opens and closes a listener. true: the address is in use.
func (l *loader) tryBind(key string, a Address) (busy bool) {
	if a.Network == "unix" {
		return l.tryUnix(key, a.Addr)
	}
	listener, err := net.Listen(a.Network, a.Addr)
	switch {
	case err == nil:
		listener.Close()
	case errors.Is(err, syscall.EADDRINUSE):
		return true
	case errors.Is(err, syscall.EACCES):
		l.reportAt(key, fmt.Sprintf("%v: permission denied: ports below 1024 need root or CAP_NET_BIND_SERVICE", a))
	default:
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		l.reportAt(key, fmt.Sprintf("%v: %v", a, err))
	}
	return false
}

// tryUnix looks whether a socket could be made at path, without making it: a path can't be bound twice, and what is there may be
// another program's.
func (l *loader) tryUnix(key, path string) (busy bool) {
	parent := filepath.Dir(path)
	if info, err := os.Stat(parent); err != nil || !info.IsDir() {
		l.reportAt(key, fmt.Sprintf("the directory %s does not exist", parent))
		return false
	}
	if err := checkWritable(parent); err != nil {
		l.reportAt(key, err.Error())
		return false
	}
	info, err := os.Lstat(path)
	if err != nil {
		return false
	}
	if info.Mode()&os.ModeSocket == 0 {
		l.reportAt(key, fmt.Sprintf("%s exists and is not a socket", path))
		return false
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
	}
	return !errors.Is(err, syscall.ECONNREFUSED) // refused: left over, nobody is there
}
