package ledger

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// spoolFileMaker writes files as package queue/spool documents them, from the documentation alone.
type spoolFileMaker struct {
	b    []byte
	seed uint32
	seq  uint64
}

func le32(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(b, v) }
func le64(b []byte, v uint64) []byte { return binary.LittleEndian.AppendUint64(b, v) }

func (m *spoolFileMaker) pad(to int) {
	for len(m.b)%to != 0 {
		m.b = append(m.b, 0)
	}
}

func newSpoolFile(kind uint32, number, salt uint64) *spoolFileMaker {
	fields := le64(le64(le32(le32(le32(nil, 1), kind), 0), number), salt)
	fields = append(fields, make([]byte, 24)...)
	header := append(le32([]byte("fedgspol"), crc32.Checksum(fields, castagnoli)), fields...)
	m := &spoolFileMaker{b: make([]byte, 4096)}
	copy(m.b, header)
	copy(m.b[512:], header)
	m.seed = crc32.Update(kind, castagnoli, le64(le64(nil, salt), number))
	return m
}

// record appends one, as a batch of its own if last.
func (m *spoolFileMaker) record(envelope, trace, data []byte, last bool) {
	m.seq++
	seq := le64(nil, m.seq)
	start := crc32.Update(m.seed, castagnoli, seq)
	body := crc32.Update(crc32.Update(start, castagnoli, trace), castagnoli, le32(nil, crc32.Checksum(data, castagnoli)))
	rest := append(bytes.Clone(seq), make([]byte, 16)...)
	rest = le64(le32(le32(rest, uint32(len(envelope))), uint32(len(trace))), uint64(len(data)))
	rest = le32(le32(rest, crc32.Update(start, castagnoli, envelope)), body)
	rest = le32(rest, uint32(len(m.b)/4096))
	flag := uint32(0)
	if last {
		flag = 1
	}
	rest = le32(rest, flag)
	m.b = append(m.b, "FEm1"...)
	m.b = append(le32(m.b, crc32.Update(m.seed, castagnoli, rest)), rest...)
	m.b = append(append(append(m.b, envelope...), trace...), data...)
	m.pad(64)
	if last {
		m.pad(4096)
	}
}

func (m *spoolFileMaker) ack(kind byte, payload []byte) {
	rest := append([]byte{byte(len(payload)), byte(len(payload) >> 8), byte(len(payload) >> 16), kind}, payload...)
	m.b = append(le32(m.b, crc32.Update(m.seed, castagnoli, rest)), rest...)
	m.pad(8)
}

func (m *spoolFileMaker) mark(segment, end uint64, what uint32) {
	m.ack(3, le32(le64(le64(nil, segment), end), what))
}

func (m *spoolFileMaker) write(t testing.TB, dir, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), m.b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// spoolEnvelope gives the binary form of one with these forward-paths.
func spoolEnvelope(paths ...string) []byte {
	b := append([]byte{1}, make([]byte, 45)...)
	for _, field := range []string{"\x7f\x00\x00\x01\x00\x19", "client.test", "ESMTP", "mx", "sender@load.test", ""} {
		b = append(binary.AppendUvarint(b, uint64(len(field))), field...)
	}
	b = binary.AppendUvarint(b, uint64(len(paths)))
	for _, path := range paths {
		b = append(b, 0)
		b = append(binary.AppendUvarint(b, uint64(len(path))), path...)
		b = append(b, 0)
	}
	return b
}

// mail appends the record of a good message of the test's run to n recipients.
func (m *spoolFileMaker) mail(seq uint64, n int, last bool) {
	var paths []string
	for i := range n {
		paths = append(paths, string(AppendRecipient(nil, testRun, seq, i, "load.test")))
	}
	m.record(spoolEnvelope(paths...), []byte("Received: from a\r\n\tby b; now\r\n"),
		message(seq, "", "Subject: a\r\n", strings.Repeat("Hello\r\n", 500)), last)
}

// arrived gives the messages whose recipient 0 arrived once.
func arrived(t testing.TB, dir string) (all []uint64) {
	t.Helper()
	r, err := ReadSpool(dir, testRun)
	if err != nil {
		t.Fatal(err)
	}
	for seq := range uint64(100) {
		if n, corrupt := r.Count(seq, 0); n > 0 {
			if n > 1 || corrupt {
				t.Errorf("message %d: %d times, corrupt %v", seq, n, corrupt)
			}
			all = append(all, seq)
		}
	}
	return all
}

func TestReadSpoolSeesIntactRecords(t *testing.T) {
	const zeros = 3 * spoolWindow
	for _, test := range []struct {
		name string
		make func(t *testing.T, dir string)
		want string
	}{
		{"a batch, then one alone", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			m.mail(1, 1, false)
			m.mail(2, 3, true)
			m.mail(3, 1, true)
			m.write(t, dir, "00000005.seg")
		}, "[1 2 3]"},
		{"zeros behind and between", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			m.mail(1, 1, true)
			m.b = append(m.b, make([]byte, zeros)...)
			m.mail(2, 1, true)
			m.b = append(m.b, make([]byte, zeros)...)
			m.write(t, dir, "00000005.seg")
		}, "[1 2]"},
		{"torn tail", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			m.mail(1, 1, true)
			end := len(m.b)
			m.mail(2, 1, true)
			m.b = m.b[:end+2000]
			m.write(t, dir, "00000005.seg")
		}, "[1]"},
		{"tail of zeros where data should be", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			m.mail(1, 1, true)
			end := len(m.b)
			m.mail(2, 1, true)
			clear(m.b[end+2000:])
			m.write(t, dir, "00000005.seg")
		}, "[1]"},
		{"damaged header, records behind it", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			m.mail(1, 1, true)
			at := len(m.b)
			m.mail(2, 1, false)
			m.mail(3, 1, true)
			m.b[at+9] ^= 1
			m.write(t, dir, "00000005.seg")
		}, "[1 3]"},
		{"damaged envelope, trace field and data", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			m.mail(1, 1, true)
			for seq, where := range []int{64 + 60, 64 + len(spoolEnvelope(string(AppendRecipient(nil, 1, 1, 0, "load.test")))) + 3, 2000} {
				at := len(m.b)
				m.mail(uint64(seq)+2, 1, true)
				m.b[at+where] ^= 1
			}
			m.mail(9, 1, true)
			m.write(t, dir, "00000005.seg")
		}, "[1 9]"},
		{"one header copy damaged", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			m.mail(1, 1, true)
			m.b[40]++
			m.write(t, dir, "00000005.seg")
		}, "[1]"},
		{"both header copies damaged", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			m.mail(1, 1, true)
			m.b[33]++
			m.b[512+33]++
			m.write(t, dir, "00000005.seg")
		}, "[]"},
		{"used again with a new salt", func(t *testing.T, dir string) {
			old := newSpoolFile(1, 5, 77)
			old.mail(1, 1, true)
			old.mail(2, 1, true)
			old.mail(3, 1, true)
			m := newSpoolFile(1, 6, 78)
			m.mail(4, 1, true)
			m.b = append(m.b, old.b[len(m.b):]...)
			m.write(t, dir, "00000006.seg")
		}, "[4]"},
		{"renamed, header still the old one", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			m.mail(1, 1, true)
			m.write(t, dir, "00000006.seg")
		}, "[]"},
		{"a record copied from another place", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			at := len(m.b)
			m.mail(1, 1, true)
			other := newSpoolFile(1, 6, 77)
			other.b = append(other.b, m.b[at:]...)
			other.write(t, dir, "00000006.seg")
		}, "[]"},
		{"cut", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			m.mail(1, 1, true)
			end := len(m.b)
			m.mail(2, 1, true)
			m.write(t, dir, "00000005.seg")
			a := newSpoolFile(2, 3, 79)
			a.mark(5, uint64(end), 0)
			a.ack(1, le64(nil, 1))
			a.mark(5, uint64(end), 2)
			a.b = append(a.b, make([]byte, 1000)...)
			a.write(t, dir, "00000003.ack")
		}, "[1]"},
		{"sealed, and noted as moving on", func(t *testing.T, dir string) {
			for number := range uint64(2) {
				m := newSpoolFile(1, 5+number, 77)
				m.mail(1+number, 1, true)
				m.write(t, dir, fmt.Sprintf("%08d.seg", 5+number))
			}
			a := newSpoolFile(2, 3, 79)
			a.mark(5, 8192, 1)
			a.mark(6, 4096, 0)
			a.write(t, dir, "00000003.ack")
		}, "[1 2]"},
		{"gone", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			m.mail(1, 1, true)
			m.write(t, dir, "00000005.seg")
			a := newSpoolFile(2, 3, 79)
			a.mark(5, 0, 3)
			a.write(t, dir, "00000003.ack")
		}, "[]"},
		{"two ack logs: the higher number counts", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			m.mail(1, 1, true)
			m.write(t, dir, "00000005.seg")
			a := newSpoolFile(2, 3, 79)
			a.mark(5, 0, 3)
			a.write(t, dir, "00000003.ack")
			newSpoolFile(2, 4, 80).write(t, dir, "00000004.ack")
		}, "[1]"},
		{"a damaged ack record is passed over", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			m.mail(1, 1, true)
			end := len(m.b)
			m.mail(2, 1, true)
			m.write(t, dir, "00000005.seg")
			a := newSpoolFile(2, 3, 79)
			a.ack(1, le64(nil, 1))
			a.b[4096+10]++
			a.mark(5, uint64(end), 2)
			a.write(t, dir, "00000003.ack")
		}, "[1]"},
		{"other files", func(t *testing.T, dir string) {
			m := newSpoolFile(1, 5, 77)
			m.mail(1, 1, true)
			m.write(t, dir, "00000005.seg")
			m.write(t, dir, "00000005.seg.damaged")
			m.write(t, dir, "5.seg")
			m.write(t, dir, "x.seg")
			m.write(t, dir, "00000006.idx")
		}, "[1]"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			test.make(t, dir)
			if got := fmt.Sprint(arrived(t, dir)); got != test.want {
				t.Errorf("arrived: %s, want %s", got, test.want)
			}
		})
	}
}

func TestReadSpoolCountsEachRecipientAndOtherRunsAsStrangers(t *testing.T) {
	dir := t.TempDir()
	m := newSpoolFile(1, 5, 77)
	m.mail(1, 3, true)
	m.record(spoolEnvelope("someone@load.test"), nil, message(2, "", "", "Hello\r\n"), true) // a fixed address
	m.record(spoolEnvelope("someone@load.test"), nil, []byte("Subject: a\r\n\r\nb\r\n"), true)
	m.record(spoolEnvelope(string(AppendRecipient(nil, 99, 1, 0, "load.test"))), nil, nil, true)
	m.record(spoolEnvelope(string(AppendRecipient(nil, testRun, 3, 0, "load.test"))), nil, message(4, "", "", "Hello\r\n"), true)
	m.write(t, dir, "00000005.seg")
	r, err := ReadSpool(dir, testRun)
	if err != nil {
		t.Fatal(err)
	}
	received, corrupt, altered, repeated := r.Totals()
	if received != 5 || corrupt != 1 || altered != 0 || repeated != 0 || r.Strangers() != 2 {
		t.Errorf("%d received, %d corrupt, %d altered, %d repeated, %d strangers", received, corrupt, altered, repeated, r.Strangers())
	}
}

func TestReadSpoolErrors(t *testing.T) {
	if _, err := ReadSpool(filepath.Join(t.TempDir(), "none"), 1); err == nil {
		t.Error("a directory that is not there was read")
	}
	if _, err := ReadSpool(t.TempDir(), 1); err == nil {
		t.Error("an empty directory was taken for a spool")
	}
	dir := t.TempDir()
	m := newSpoolFile(1, 5, 77)
	for _, at := range []int{0, 512} { // format version 2
		m.b[at+12] = 2
		binary.LittleEndian.PutUint32(m.b[at+8:], crc32.Checksum(m.b[at+12:at+64], castagnoli))
	}
	m.write(t, dir, "00000005.seg")
	if _, err := ReadSpool(dir, 1); err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a newer version: %v", err)
	}
}

func TestEnvelopeRecipientsRefusesWhatIsMalformed(t *testing.T) {
	good := spoolEnvelope("a@load.test", "b@load.test")
	paths, ok := envelopeRecipients(nil, good)
	if !ok || len(paths) != 2 || string(paths[1]) != "b@load.test" {
		t.Errorf("%q, %v", paths, ok)
	}
	for n := range good {
		if _, ok := envelopeRecipients(nil, good[:n]); ok {
			t.Errorf("cut at %d: taken", n)
		}
	}
	if _, ok := envelopeRecipients(nil, append(bytes.Clone(good), 0)); ok {
		t.Error("one octet more: taken")
	}
	huge := append(spoolEnvelope()[:len(spoolEnvelope())-1], 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1)
	if _, ok := envelopeRecipients(nil, huge); ok {
		t.Error("2⁶⁴-1 recipients: taken")
	}
}

// Later versions have fields between the listener and the reverse-path.
func TestEnvelopeRecipientsOfLaterVersions(t *testing.T) {
	v1 := spoolEnvelope("a@load.test", "b@load.test")
	at := bytes.Index(v1, []byte("\x02mx")) + 3
	with := func(version, flags byte, fields string) []byte {
		b := slices.Concat(v1[:at], []byte(fields), v1[at:])
		b[0], b[17] = version, flags
		return b
	}
	key := strings.Repeat("k", 64)
	for name, b := range map[string][]byte{
		"2":            with(2, 0, "\x05alice\x00"),
		"3":            with(3, 1<<5, "\x00\x08spf=none\x02{}"),
		"3 with a key": with(3, 1<<5|1<<6, "\x00\x00\x00"+key+"\x03202"),
	} {
		paths, ok := envelopeRecipients(nil, b)
		if !ok || len(paths) != 2 || string(paths[0]) != "a@load.test" || string(paths[1]) != "b@load.test" {
			t.Errorf("version %s: %q, %v", name, paths, ok)
		}
		for n := range b {
			if _, ok := envelopeRecipients(nil, b[:n]); ok {
				t.Errorf("version %s, cut at %d: taken", name, n)
			}
		}
	}
	if _, ok := envelopeRecipients(nil, with(4, 0, "\x00\x00\x00")); ok {
		t.Error("version 4: taken")
	}
}

// A file with changed bytes never makes more of a message than there was, and never one that was not.
func FuzzReadSpool(f *testing.F) {
	m := newSpoolFile(1, 5, 77)
	m.mail(1, 2, false)
	m.mail(2, 1, true)
	m.mail(3, 1, true)
	a := newSpoolFile(2, 3, 79)
	a.mark(5, uint64(len(m.b)), 0)
	a.ack(1, le64(nil, 1))
	f.Add(uint(4096), []byte{1}, uint(4096), []byte{})
	f.Add(uint(4096+40), []byte{255, 255, 255, 255, 255}, uint(4096+4), []byte{255, 255, 255})
	f.Add(uint(0), bytes.Repeat([]byte{7}, 600), uint(0), bytes.Repeat([]byte{7}, 600))
	reader := &segmentReader{}
	f.Fuzz(func(t *testing.T, at uint, put []byte, ackAt uint, ackPut []byte) {
		seg, acks := bytes.Clone(m.b), bytes.Clone(a.b)
		copy(seg[at%uint(len(seg)):], put)
		copy(acks[ackAt%uint(len(acks)):], ackPut)
		notes := spoolNotes{map[uint64]int64{}, map[uint64]bool{}}
		notes.read(acks, a.seed)
		limit, cut := notes.cuts[5]
		if !cut {
			limit = 1 << 62
		}
		g := &Register{runs: []*Receipts{NewReceipts(testRun)}, only: true}
		reader.in = NewInspection(g)
		if err := reader.read(bytes.NewReader(seg), 5, min(limit, int64(len(seg)))); err != nil {
			return
		}
		r := g.Receipts(testRun)
		received, corrupt, _, repeated := r.Totals()
		if received > 4 || corrupt > 0 || repeated > 0 || r.Strangers() > 0 {
			t.Errorf("%d received, %d corrupt, %d repeated, %d strangers", received, corrupt, repeated, r.Strangers())
		}
	})
}
