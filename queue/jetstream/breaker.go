package jetstream

import (
	"fmt"
	"sync"
	"time"

	"github.com/fastedge/fastedge/queue"
)

// breakerFailures is how many commits in a row may fail for want of an answer before the next ones are not tried.
const breakerFailures = 2

// breakerState is what was last seen of the cluster.
type breakerState uint8

const (
	stateClosed   breakerState = iota // it answers
	stateOpen                         // it does not: commits fail at once
	stateHalfOpen                     // it answered a probe: the next commit decides
)

// breaker spares clients the wait for a cluster that does not answer. Any goroutine.
type breaker struct {
	now func() time.Time

	mu       sync.Mutex
	state    breakerState
	failures int
	reason   string
	since    time.Time
}

// allow says nil when a commit should be tried.
func (b *breaker) allow() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != stateOpen {
		return nil
	}
	return fmt.Errorf("%w: %s", queue.ErrUnavailable, b.reason)
}

// succeeded closes the breaker; it says whether that is news.
func (b *breaker) succeeded() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	news := b.state != stateClosed
	b.state, b.failures = stateClosed, 0
	return news
}

// failed counts a commit without an answer, and says whether the breaker opened.
func (b *breaker) failed(reason string) bool {
	b.mu.Lock()
	b.failures++
	enough := b.state == stateHalfOpen || b.failures >= breakerFailures
	b.mu.Unlock()
	return enough && b.trip(reason)
}

// trip opens the breaker, and says whether that is news.
func (b *breaker) trip(reason string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	news := b.state == stateClosed
	if b.state != stateOpen {
		b.since = b.now()
	}
	b.state, b.reason = stateOpen, reason
	return news
}

// probed is told that the cluster answered a probe.
func (b *breaker) probed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state == stateOpen {
		b.state = stateHalfOpen
	}
}

// is says whether the breaker is in that state.
func (b *breaker) is(state breakerState) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state == state
}

// alarm says what is wrong and since when, or nothing. Half open is ready: an edge behind a load balancer gets the commit that decides only when
// it says so, and a relay never makes one.
func (b *breaker) alarm() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.state != stateOpen {
		return ""
	}
	return fmt.Sprintf("JetStream: %s, since %s", b.reason, b.since.UTC().Format(time.RFC3339))
}
