package sink

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// stored is one message on its way into the Store directory. After the first failure the rest does nothing.
type stored struct {
	path string // without ending
	file *os.File
	w    *bufio.Writer
	err  error
}

// storedEnvelope is what NAME.json holds.
type storedEnvelope struct {
	Received    time.Time `json:"received"`
	Client      string    `json:"client"`
	Hello       string    `json:"hello"`
	Protocol    string    `json:"protocol"`
	ReversePath string    `json:"reverse_path"`
	Parameters  string    `json:"parameters,omitempty"` // of MAIL, as sent
	Recipients  []string  `json:"recipients"`           // those that were accepted
}

// newStored begins NAME.eml, with ".part" behind it until it is complete.
func (s *Sink) newStored(number uint64) *stored {
	m := &stored{path: filepath.Join(s.o.Store, s.nameBase+"-"+fmt.Sprintf("%010d", number))}
	if m.file, m.err = os.OpenFile(m.path+".eml.part", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); m.err == nil {
		m.w = bufio.NewWriterSize(m.file, 64<<10)
	}
	return m
}

func (m *stored) write(p []byte) {
	if m.err == nil {
		_, m.err = m.w.Write(p)
	}
}

// drop removes what there is.
func (m *stored) drop() {
	if m.file != nil {
		m.file.Close()
		os.Remove(m.path + ".eml.part")
	}
}

// keep completes both files. The message is there when NAME.eml is.
func (m *stored) keep(e storedEnvelope) error {
	if m.err == nil {
		m.err = m.w.Flush()
	}
	var text []byte
	if m.err == nil {
		text, m.err = json.MarshalIndent(e, "", "  ")
	}
	if m.err == nil {
		m.err = os.WriteFile(m.path+".json", append(text, '\n'), 0o600)
	}
	if m.err == nil {
		m.err = os.Rename(m.path+".eml.part", m.path+".eml")
	}
	if m.err != nil {
		m.drop()
		return m.err
	}
	return m.file.Close()
}
