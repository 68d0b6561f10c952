package machine

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fastedge/fastedge/loadtest/report"
)

// Facts says what this machine is. What cannot be found out stays empty; the fields about the disk are left to SyncTimes.
func Facts() report.Machine {
	m := report.Machine{
		Date:     time.Now().UTC().Format(time.DateOnly),
		Host:     hostHash(),
		CPU:      fileField("/proc/cpuinfo", "model name"),
		Cores:    len(Affinity(0)),
		Kernel:   kernel(),
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if m.CPU == "" {
		m.CPU = runtime.GOARCH // ARM kernels name no model
	}
	if m.Cores == 0 {
		m.Cores = runtime.NumCPU()
	}
	kib, _, _ := strings.Cut(fileField("/proc/meminfo", "MemTotal"), " ")
	n, _ := strconv.ParseInt(kib, 10, 64)
	m.MemoryMiB = n >> 10
	return m
}

// hostHash tells machines apart without naming them. machine-id(5) asks for a keyed hash.
func hostHash() string {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil || len(strings.TrimSpace(string(id))) == 0 {
		name, err := os.Hostname()
		if err != nil {
			return ""
		}
		id = []byte(name)
	}
	h := hmac.New(sha256.New, []byte(strings.TrimSpace(string(id))))
	h.Write([]byte("fastedge load test"))
	return hex.EncodeToString(h.Sum(nil)[:4])
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}

// fileField returns what follows the first "name:" at the start of a line, or "".
func fileField(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, ok := strings.Cut(lines.Text(), ":")
		if ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
