package jetstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	js "github.com/nats-io/nats.go/jetstream"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

// Objects are laid out as every client of NATS object stores expects (ADR-20): chunks on one subject, and one message that describes them.
// They are written here rather than with nats.go's Put: that one sends a chunk again, when a server was not there for a moment, from memory
// that holds the next chunk by then, and says that all went well.

func (q *Queue) chunkSubject(unique string) string {
	return "$O." + q.o.ObjectBucket + ".C." + unique
}

func (q *Queue) metaSubject(name string) string {
	return "$O." + q.o.ObjectBucket + ".M." + base64.URLEncoding.EncodeToString([]byte(name))
}

// putObject stores size bytes. With nil they are acknowledged. Part of a commit, or under Queue.committing: one at a time.
func (q *Queue) putObject(name string, size int64, content func(yield func([]byte) bool), deadline time.Time) error {
	var last error
	for time.Now().Before(deadline) && q.ctx.Err() == nil {
		if !q.nc.IsConnected() {
			last = fmt.Errorf("jetstream: %w: not connected", queue.ErrUnavailable)
		} else if last = q.tryObject(name, size, content, deadline); last == nil || !errors.Is(last, queue.ErrUnavailable) {
			return last
		}
		select {
		case <-q.ctx.Done():
		case <-time.After(min(resendPause, max(time.Until(deadline), 0))):
		}
	}
	if last == nil {
		last = fmt.Errorf("jetstream: %w: no time left for an object", queue.ErrUnavailable)
	}
	return last
}

// tryObject writes chunks in one flight that any trouble ends: a chunk sent again could stand behind its successor. An object of that name,
// left by a try that got no answer, is taken when it is the same, and else its chunks go.
func (q *Queue) tryObject(name string, size int64, content func(yield func([]byte) bool), deadline time.Time) (err error) {
	ctx, cancel := context.WithDeadline(q.ctx, deadline)
	defer cancel()
	old, err := q.objectInfo(ctx, name)
	switch {
	case err == nil:
		same, err := q.sameObject(ctx, old, size, content)
		if err != nil {
			return q.objectTrouble(err)
		}
		if same {
			return q.describe(old, deadline) // as of now: the sweep goes by its age
		}
	case errors.Is(err, queue.ErrNotFound), errors.Is(err, queue.ErrCorrupt):
		old = nil
	default:
		return q.objectTrouble(err)
	}

	var random [11]byte
	rand.Read(random[:])
	unique := hex.EncodeToString(random[:])
	n := int((size + chunkBytes - 1) / chunkBytes)
	digest := sha256.New()

	// The flight asks for chunk 0, 1, 2, ... once each: it is strict.
	next, stop := pull2(content)
	defer stop()
	var rest []byte
	chunk := make([]byte, 0, min(size, chunkBytes))
	f := &flight{
		stream: q.o.objStream(), n: n, strict: true, deadline: deadline,
		size: func(i int) int64 { return min(chunkBytes, size-int64(i)*chunkBytes) },
		message: func(i int) (*nats.Msg, error) {
			chunk = chunk[:0]
			for len(chunk) < chunkBytes {
				if len(rest) == 0 {
					var ok bool
					if rest, ok = next(); !ok {
						break
					}
				}
				take := min(len(rest), chunkBytes-len(chunk))
				chunk = append(chunk, rest[:take]...)
				rest = rest[take:]
			}
			digest.Write(chunk)
			return &nats.Msg{Subject: q.chunkSubject(unique), Data: chunk, Header: nats.Header{
				// Whose it is and where it is described, for the sweep.
				hdrMsgID: {unique + "." + strconv.Itoa(i)}, hdrStream: {q.o.Stream}, hdrObject: {name},
			}}, nil
		},
	}
	q.pub.run(f)
	for i, e := range f.errs {
		if err = e; err != nil {
			break
		}
		if i > 0 && f.seqs[i] <= f.seqs[i-1] {
			err = fmt.Errorf("jetstream: %w: chunks of an object were stored in another order", queue.ErrUnavailable)
			break
		}
	}
	if err != nil {
		q.purgeChunks(unique) // without a description they are nothing to nobody
		return err
	}
	// Without an answer to this the chunks stay: it may be stored, and is found at the next try.
	err = q.describe(&js.ObjectInfo{
		ObjectMeta: js.ObjectMeta{
			Name: name, Opts: &js.ObjectMetaOptions{ChunkSize: chunkBytes}, Metadata: map[string]string{ownerKey: q.o.Stream},
		},
		Bucket: q.o.ObjectBucket, NUID: unique, Size: uint64(size), Chunks: uint32(n), Digest: digestText(digest),
	}, deadline)
	if err == nil && old != nil {
		q.purgeChunks(old.NUID)
	}
	return err
}

// ownerKey says in the metadata of a bucket and of an object which mail stream it belongs to: a bucket may be shared, a sweep may not.
const ownerKey = "fastedge-stream"

// objectTrouble is err of a look at the bucket, as a commit gives it.
func (q *Queue) objectTrouble(err error) error {
	if noStream(err) {
		q.suspect()
	}
	return fmt.Errorf("jetstream: %w: object: %s", queue.ErrUnavailable, trouble(err))
}

// describe publishes the description of an object whose chunks are there, in the place of any other of that name.
func (q *Queue) describe(info *js.ObjectInfo, deadline time.Time) error {
	info.ModTime = time.Time{}
	text, err := json.Marshal(info)
	if err != nil {
		panic("jetstream: object: " + err.Error())
	}
	f := &flight{
		stream: q.o.objStream(), n: 1, strict: true, deadline: deadline,
		size: func(int) int64 { return int64(len(text)) },
		message: func(int) (*nats.Msg, error) {
			return &nats.Msg{Subject: q.metaSubject(info.Name), Data: text, Header: nats.Header{"Nats-Rollup": {"sub"}}}, nil
		},
	}
	q.pub.run(f)
	return f.errs[0]
}

func digestText(h hash.Hash) string {
	return "SHA-256=" + base64.URLEncoding.EncodeToString(h.Sum(nil))
}

// sameObject says whether the object is what content gives, and all of its chunks are there.
func (q *Queue) sameObject(ctx context.Context, info *js.ObjectInfo, size int64, content func(yield func([]byte) bool)) (bool, error) {
	if int64(info.Size) != size {
		return false, nil
	}
	digest := sha256.New()
	content(func(p []byte) bool { digest.Write(p); return true })
	if info.Digest != digestText(digest) {
		return false, nil
	}
	var there js.StreamInfo
	subject := q.chunkSubject(info.NUID)
	err := q.api(ctx, "STREAM.INFO."+q.o.objStream(), struct {
		Filter string `json:"subjects_filter"`
	}{subject}, &there)
	return there.State.Subjects[subject] == uint64(info.Chunks), err
}

// purgeChunks removes chunks as well as it can; the sweep finds what is left.
func (q *Queue) purgeChunks(unique string) {
	if !q.nc.IsConnected() {
		return
	}
	ctx, cancel := context.WithTimeout(q.ctx, q.o.Timeout)
	defer cancel()
	q.purge(ctx, q.o.objStream(), q.chunkSubject(unique))
}

// pull2 turns a sequence of byte slices into a function.
func pull2(seq func(yield func([]byte) bool)) (next func() ([]byte, bool), stop func()) {
	var all [][]byte
	seq(func(p []byte) bool { all = append(all, p); return true })
	i := 0
	return func() ([]byte, bool) {
		if i == len(all) {
			return nil, false
		}
		i++
		return all[i-1], true
	}, func() {}
}

// objectInfo describes an object. It gives ErrNotFound.
func (q *Queue) objectInfo(ctx context.Context, name string) (*js.ObjectInfo, error) {
	m, err := q.get(ctx, q.o.objStream(), getRequest{LastFor: q.metaSubject(name)})
	if err != nil {
		return nil, err
	}
	var info js.ObjectInfo
	if err := json.Unmarshal(m.data, &info); err != nil {
		return nil, damage{"object (description)"}
	}
	if info.Deleted { // by another program; nats.go leaves that
		return nil, queue.ErrNotFound
	}
	info.ModTime = m.time
	return &info, nil
}

// deleteObject removes description and chunks; nats.go's way leaves a description for ever.
func (q *Queue) deleteObject(ctx context.Context, name string) error {
	info, err := q.objectInfo(ctx, name)
	if errors.Is(err, queue.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := q.purge(ctx, q.o.objStream(), q.chunkSubject(info.NUID)); err != nil {
		return err
	}
	return q.purge(ctx, q.o.objStream(), q.metaSubject(name))
}

// openObject reads chunk by chunk. The reader gives an error in place of EOF when what it gave does not match sum.
func (q *Queue) openObject(ctx context.Context, name string, size int64, sum uint32) (*objectReader, error) {
	info, err := q.objectInfo(ctx, name)
	if err != nil {
		if errors.Is(err, queue.ErrNotFound) {
			return nil, damage{"object (missing)"}
		}
		return nil, err
	}
	if int64(info.Size) != size {
		return nil, damage{"object (length)"}
	}
	return &objectReader{q: q, subject: q.chunkSubject(info.NUID), left: size, want: sum}, nil
}

// objectReader reads an object from the leader, one chunk at a time: no subscription, nothing to clean up.
type objectReader struct {
	q       *Queue
	subject string
	next    uint64 // sequence number to look from
	chunk   []byte
	left    int64
	sum     uint32
	want    uint32
}

func (r *objectReader) Read(p []byte) (int, error) {
	if len(r.chunk) == 0 {
		if r.left == 0 {
			if r.sum != r.want {
				return 0, damage{"object"}
			}
			return 0, io.EOF
		}
		ctx, cancel := context.WithTimeout(r.q.ctx, r.q.o.Timeout)
		defer cancel()
		m, err := r.q.get(ctx, r.q.o.objStream(), getRequest{Seq: max(r.next, 1), NextFor: r.subject})
		if errors.Is(err, queue.ErrNotFound) {
			return 0, damage{"object (shorter)"}
		}
		if err != nil {
			return 0, err
		}
		if len(m.data) == 0 || int64(len(m.data)) > r.left {
			return 0, damage{"object (length)"}
		}
		r.chunk, r.next = m.data, m.seq+1
		r.left -= int64(len(m.data))
		r.sum = crc32.Update(r.sum, castagnoli, m.data)
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	return n, nil
}

func (*objectReader) Close() error { return nil }

// readObject reads an object that must be in memory whole.
func (q *Queue) readObject(ctx context.Context, name string, limit int64) ([]byte, error) {
	info, err := q.objectInfo(ctx, name)
	if err != nil {
		return nil, err
	}
	if int64(info.Size) > limit {
		return nil, damage{"object (length)"}
	}
	var b bytes.Buffer
	r := &objectReader{q: q, subject: q.chunkSubject(info.NUID), left: int64(info.Size)}
	for r.left > 0 {
		if _, err := io.CopyN(&b, r, r.left); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// sweepObjects removes what nothing points to: objects whose message never came into the stream, for the edge died between the two, or got no
// answer; and chunks without a description. Each is older than a day then, and of this stream. Runs on a goroutine of its own.
func (q *Queue) sweepObjects() {
	q.sweeping.Lock()
	defer q.sweeping.Unlock()
	q.sweepDescriptions()
	q.sweepChunks()
}

// sweepNext gets the message of the bucket that a sweep looks at next, or nil when it is through: the next one starts at the beginning.
func (q *Queue) sweepNext(from *uint64, subject string) *stored {
	ctx, cancel := context.WithTimeout(q.ctx, maxPatience)
	defer cancel()
	m, err := q.get(ctx, q.o.objStream(), getRequest{Seq: max(*from, 1), NextFor: subject})
	if errors.Is(err, queue.ErrNotFound) || err == nil && m.time.After(q.o.Now().Add(-objectGrace)) {
		*from = 0
		return nil
	}
	if err != nil {
		return nil
	}
	*from = m.seq + 1
	return m
}

// sweepDescriptions goes by what describes an object. Its message came into the stream soon after it; so when all in the stream is a day
// younger, and no state, held or dead message has its name, there is none.
func (q *Queue) sweepDescriptions() {
	ctx, cancel := context.WithTimeout(q.ctx, maxPatience)
	info, err := q.streamInfo(ctx, q.o.Stream)
	cancel()
	if err != nil {
		return
	}
	for range maxSweep {
		m := q.sweepNext(&q.swept.descriptions, "$O."+q.o.ObjectBucket+".M.>")
		if m == nil {
			return
		}
		if info.State.Msgs > 0 && !info.State.FirstTime.After(m.time.Add(objectGrace)) {
			q.swept.descriptions = 0
			return
		}
		var object js.ObjectInfo
		if json.Unmarshal(m.data, &object) != nil || object.Metadata[ownerKey] != q.o.Stream || len(object.Name) < envelope.IDChars {
			continue
		}
		id, err := envelope.ParseID(object.Name[:envelope.IDChars])
		if err != nil {
			continue
		}
		ctx, cancel := context.WithTimeout(q.ctx, maxPatience)
		switch {
		case object.Deleted:
			q.purge(ctx, q.o.objStream(), m.subject)
		case q.known(ctx, id.String()) == nil:
			if err := q.deleteObject(ctx, object.Name); err == nil {
				q.o.Log.Info("jetstream: object without a message removed", "object", object.Name, "bytes", object.Size)
			}
		}
		cancel()
	}
}

// sweepChunks removes chunks that no description points to: of a try that was cut short, or whose description has been replaced.
func (q *Queue) sweepChunks() {
	for range maxSweep {
		m := q.sweepNext(&q.swept.chunks, "$O."+q.o.ObjectBucket+".C.>")
		if m == nil {
			return
		}
		name := m.header.Get(hdrObject)
		if m.header.Get(hdrStream) != q.o.Stream || name == "" {
			continue
		}
		ctx, cancel := context.WithTimeout(q.ctx, maxPatience)
		info, err := q.objectInfo(ctx, name)
		switch {
		case errors.Is(err, queue.ErrNotFound), err == nil && q.chunkSubject(info.NUID) != m.subject:
			if err := q.purge(ctx, q.o.objStream(), m.subject); err == nil {
				q.o.Log.Info("jetstream: chunks without an object removed", "object", name)
			}
		case err == nil: // the others of a living one need not be looked at
			if last, err := q.get(ctx, q.o.objStream(), getRequest{LastFor: m.subject}); err == nil {
				q.swept.chunks = last.seq + 1
			}
		}
		cancel()
	}
}

// known gives nil when no stream beside the mail stream knows that id.
func (q *Queue) known(ctx context.Context, id string) error {
	for stream, subject := range map[string]string{
		q.o.stateStream(): q.o.stateSubject(id), q.o.heldStream(): q.o.heldSubject(id), q.o.deadStream(): q.o.deadSubject(id),
	} {
		_, err := q.get(ctx, stream, getRequest{LastFor: subject})
		if err == nil {
			return errors.New("jetstream: known")
		}
		if !errors.Is(err, queue.ErrNotFound) {
			return err
		}
	}
	return nil
}
