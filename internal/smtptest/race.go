//go:build race

package smtptest

// stride leaves out most of the positions to cut at: the race detector is slow, and a session has one goroutine.
const stride = 13
