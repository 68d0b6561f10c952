// Package loadtest measures any mail server from the outside: it applies a load by SMTP, LMTP or HTTP, notes how long each phase
// took, and proves with a ledger that what was acknowledged arrived.
//
// It imports nothing of fastedge, so that a mistake of ours cannot hide itself: the client here is not our codec.
//
// # How a run works
//
// A session (session.go, http.go) is a machine without I/O: reply octets and the time go in, octets to send come out. Drivers move
// the octets: one epoll loop a worker for plain connections (worker.go), which is what makes the generator cheaper than what it measures,
// and a goroutine a connection where TLS or deliberate slowness is asked for (blocking.go). A schedule (schedule.go) says when messages are
// due. Run (run.go) builds all of it, watches the clock and the target's processes, and makes the report.Run.
//
// Closed loop: each connection sends its next message when the last was answered, so a slow target is offered less. Open loop: messages are
// due at times that do not depend on the target; latency counts from then (no coordinated omission).
//
// # Safety
//
// Run refuses a target that is not loopback unless Options.IOwnThisHost repeats its name. Addresses are made up under .test. Connections,
// messages, sizes and time are bounded; the bounds are the Max constants in options.go.
//
// # Goroutines
//
// Run may be called from any goroutine. It starts one a worker, one for each TLS, slow or bad client, and one for the clock; all have ended when it
// returns.
package loadtest
