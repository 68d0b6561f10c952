package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// MaxSyncs and MaxSyncTime bound SyncTimes: whichever comes first.
const (
	MaxSyncs    = 10_000
	MaxSyncTime = 2 * time.Second
)

const (
	syncBytes  = 4 << 10
	syncBlocks = 64 // written round and round, so that no write extends the file: the cheapest durable write there is
)

// SyncTimes measures n times how long it takes to write 4 KiB and fdatasync them, one after another, in a temporary file in dir, which it
// removes. It stops early after MaxSyncTime. fs is the file system's name, such as ext4, also when err is not nil.
//
// The blocks written exist already, so that the file system's journal has nothing to do: no server that is honest about "250" and waits
// for a disk on its own can be faster.
func SyncTimes(dir string, n int) (p50, p99 time.Duration, fs string, err error) {
	fs = fileSystem(dir)
	f, err := os.CreateTemp(dir, "sync-times-*")
	if err != nil {
		return 0, 0, fs, fmt.Errorf("machine: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()

	block := make([]byte, syncBytes)
	for i := range block {
		block[i] = byte(i) // no file system makes a hole of it
	}
	for i := range int64(syncBlocks) {
		if _, err := f.WriteAt(block, i*syncBytes); err != nil {
			return 0, 0, fs, fmt.Errorf("machine: %w", err)
		}
	}
	if err := f.Sync(); err != nil {
		return 0, 0, fs, fmt.Errorf("machine: %w", err)
	}
	n = min(max(n, 1), MaxSyncs)
	times := make([]time.Duration, 0, n)
	for begin := time.Now(); len(times) < n; {
		block[0]++
		start := time.Now()
		if start.Sub(begin) >= MaxSyncTime && len(times) > 0 {
			break
		}
		if _, err := f.WriteAt(block, int64(len(times)%syncBlocks)*syncBytes); err != nil {
			return 0, 0, fs, fmt.Errorf("machine: %w", err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return 0, 0, fs, fmt.Errorf("machine: fdatasync: %w", err)
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	return rank(times, 50), rank(times, 99), fs, nil
}

// rank is the nearest-rank percentile of sorted times.
func rank(sorted []time.Duration, percent int) time.Duration {
	return sorted[max((len(sorted)*percent+99)/100, 1)-1]
}

// fileSystem names the file system that holds path: as mounted, or by its magic number where mountinfo is not to be had.
func fileSystem(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		if real, err := filepath.EvalSymlinks(abs); err == nil {
			if text, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
				if name := mountedAt(string(text), real); name != "" {
					return name
				}
			}
		}
	}
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return ""
	}
	switch int64(st.Type) {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	}
	return "0x" + strconv.FormatInt(int64(st.Type), 16)
}

// mountedAt finds the type of the mount that path is in: the longest mount point that is a prefix, and of several mounts at one point
// the last, which hides the others. Format: proc(5), /proc/PID/mountinfo.
func mountedAt(mountinfo, path string) (name string) {
	longest := -1
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 1 {
			continue
		}
		point := unescape.Replace(f[4])
		if point != "/" && point != path && !strings.HasPrefix(path, point+"/") {
			continue
		}
		if len(point) >= longest {
			longest, name = len(point), g[0]
		}
	}
	return name
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
