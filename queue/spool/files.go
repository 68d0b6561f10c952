package spool

import (
	"errors"
	"os"
	"slices"
	"sync"
)

// maxOpenSegments is how many files of older segments are open at once. Their number has no bound but the disk's size, and a process
// without descriptors could take no mail. The newest segment, a prepared one and the spare ones come on top.
const maxOpenSegments = 64

// files keeps some of the sealed segments' files open, those that were opened last, and opens the others when they are read.
type files struct {
	open func(number uint64) (File, error)
	max  int

	mu    sync.Mutex // also protects the file of every segment in here
	there []*segment // whose file is open, least recently opened first
}

// add takes over a segment that will not be written to any more.
func (c *files) add(seg *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep(seg)
}

func (c *files) keep(seg *segment) {
	c.there = append(c.there, seg)
	if len(c.there) > c.max {
		c.there[0].file.Close()
		c.there[0].file = nil
		c.there = slices.Delete(c.there, 0, 1)
	}
}

// readAt is ReadAt of seg's file.
func (c *files) readAt(seg *segment, p []byte, off int64) (int, error) {
	for {
		f, err := c.get(seg)
		if err != nil {
			return 0, err
		}
		n, err := f.ReadAt(p, off)
		if errors.Is(err, os.ErrClosed) {
			continue // closed between get and ReadAt, to make room for another
		}
		return n, err
	}
}

func (c *files) get(seg *segment) (File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if seg.file == nil {
		f, err := c.open(seg.number)
		if err != nil {
			return nil, err
		}
		seg.file = f
		c.keep(seg)
	}
	return seg.file, nil
}

// remove gives the file of a segment that nobody reads any more to the caller, nil when it is not open.
func (c *files) remove(seg *segment) File {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.there, seg); i >= 0 {
		c.there = slices.Delete(c.there, i, i+1)
	}
	return seg.file
}

func (c *files) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, seg := range c.there {
		seg.file.Close()
	}
	c.there = nil
}
