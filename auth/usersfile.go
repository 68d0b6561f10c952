package auth

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// UsersFile is a users file in the hands of Update: its lines as they stand, comments too.
type UsersFile struct {
	lines [][]byte // with their line ends
}

// Set adds the user, or replaces the line there is. It reports which.
func (f *UsersFile) Set(u User) (replaced bool) {
	line := append(u.AppendTo(nil), '\n')
	if i := f.find(u.Name); i >= 0 {
		f.lines[i] = line
		return true
	}
	if n := len(f.lines); n > 0 && !bytes.HasSuffix(f.lines[n-1], []byte("\n")) {
		f.lines[n-1] = append(f.lines[n-1], '\n')
	}
	f.lines = append(f.lines, line)
	return false
}

// User is the user's line as it stands.
func (f *UsersFile) User(name string) (User, bool) {
	i := f.find(name)
	if i < 0 {
		return User{}, false
	}
	u, _, _ := parseLine(f.lines[i])
	return u, true
}

// Remove takes the user's line out, and reports whether there was one.
func (f *UsersFile) Remove(name string) bool {
	i := f.find(name)
	if i < 0 {
		return false
	}
	f.lines = append(f.lines[:i], f.lines[i+1:]...)
	return true
}

func (f *UsersFile) find(name string) int {
	for i, line := range f.lines {
		if u, ok, err := parseLine(line); err == nil && ok && u.Name == name {
			return i
		}
	}
	return -1
}

// Update changes a users file as a whole or not at all: whoever reads it, and whatever crashes, finds the old or the new one. Comments and
// other lines stay. Writers wait for each other. The new file has mode 0600, and keeps the owner and the group's right to read of
// the old one. With create, a file that is missing is made. An error of change leaves the file alone; so does a file with bad lines.
func Update(path string, create bool, change func(f *UsersFile) error) error {
	return updateFile("users file", path, create, func(path string) error { return update(path, change) })
}

// updateFile holds the lock of a file while change reads and replaces it. path may be a link: change gets what it stands for.
func updateFile(what, path string, create bool, change func(path string) error) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	lock, made, err := lockFile(path, create)
	if err != nil {
		return fmt.Errorf("auth: %s: %w", what, err)
	}
	defer lock.Close() // and the lock goes
	err = change(path)
	if err != nil && made {
		os.Remove(path)
	}
	return err
}

func update(path string, change func(f *UsersFile) error) error {
	text, info, err := readUsers(path)
	if err != nil {
		return err
	}
	if _, err := parseTable(path, text); err != nil {
		return err
	}
	var f UsersFile
	for line := range bytes.Lines(text) {
		f.lines = append(f.lines, bytes.Clone(line))
	}
	if err := change(&f); err != nil {
		return err
	}
	changed := bytes.Join(f.lines, nil)
	if _, err := parseTable(path, changed); err != nil {
		return fmt.Errorf("auth: the change would spoil the users file: %w", err)
	}
	if len(changed) > MaxUsersFileBytes {
		return fmt.Errorf("auth: the users file would have more than %d bytes", MaxUsersFileBytes)
	}
	if err := replace(path, changed, info); err != nil {
		return fmt.Errorf("auth: users file: %w", err)
	}
	return nil
}

// lockFile opens and locks the file that is at path once the lock is got: another writer may have put a new one there meanwhile.
func lockFile(path string, create bool) (f *os.File, made bool, err error) {
	for {
		f, err = os.OpenFile(path, os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) && create {
			f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			if errors.Is(err, fs.ErrExist) {
				continue
			}
			made = err == nil
		}
		if err != nil {
			return nil, false, err
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			f.Close()
			return nil, false, fmt.Errorf("lock %s: %w", path, err)
		}
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, false, err
		}
		if there, err := os.Stat(path); err == nil && os.SameFile(mine, there) {
			return f, made, nil
		}
		made = false
		f.Close()
	}
}

// replace writes a new file beside the old one, makes it durable and renames it.
func replace(path string, text []byte, old os.FileInfo) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if s, ok := old.Sys().(*syscall.Stat_t); ok {
		// Whoever serves must still be able to read it, also when root has changed it.
		if int(s.Uid) != os.Geteuid() || int(s.Gid) != os.Getegid() {
			if err := f.Chown(int(s.Uid), int(s.Gid)); err != nil {
				return err
			}
		}
	}
	if err := f.Chmod(0o600 | old.Mode().Perm()&0o040); err != nil {
		return err
	}
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
