//go:build !race

package smtptest

// stride is how far the positions lie apart at which transcripts are cut.
const stride = 1
