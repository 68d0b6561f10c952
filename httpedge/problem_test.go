package httpedge

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/fastedge/fastedge/session"
	"github.com/fastedge/fastedge/smtpcodec"
)

func TestProblemsHaveAStatusByTheirClass(t *testing.T) {
	for _, c := range []struct {
		reply  smtpcodec.Reply
		reason session.Reason
		status int
		word   string
		wait   time.Duration
	}{
		{reply(550, 1, 1, "No such user"), session.ReasonRecipient, 422, "recipientRefused", 0},
		{reply(450, 1, 1, "Try again later"), session.ReasonRecipient, 503, "recipientRefused", retryAfterTrouble},
		{reply(550, 7, 1, "Relaying denied"), session.ReasonRelay, 403, "relayDenied", 0},
		{reply(550, 7, 1, "No"), session.ReasonRule, 403, "rule", 0},
		{reply(451, 7, 1, "Not now"), session.ReasonHook, 503, "hook", retryAfterTrouble},
		{reply(550, 7, 23, "SPF"), session.ReasonSPF, 403, "spf", 0},
		{reply(552, 3, 4, "Too big"), session.ReasonSize, 413, "tooLarge", 0},
		{reply(452, 5, 3, "Too many recipients"), session.ReasonTooManyRecipients, 422, "tooManyRecipients", 0},
		{reply(554, 5, 1, "No valid recipients"), session.ReasonNoRecipients, 422, "noRecipients", 0},
		{reply(450, 7, 1, "Too many messages"), session.ReasonMessageRate, 429, "rateLimit", retryAfterRate},
		{reply(452, 3, 1, "Disk full"), session.ReasonDisk, 503, "disk", retryAfterTrouble},
		{reply(452, 3, 1, "Memory"), session.ReasonMemory, 503, "memory", retryAfterTrouble},
		{reply(421, 3, 2, "Shutting down"), session.ReasonShutdown, 503, "shutdown", retryAfterTrouble},
		{reply(530, 7, 0, "Authentication required"), session.ReasonAuth, 401, "authRequired", 0},
		{reply(535, 7, 8, "Authentication credentials invalid"), session.ReasonAuthFailed, 401, "authFailed", 0},
		{reply(454, 7, 0, "Temporary authentication failure"), session.ReasonAuthUnavailable, 503, "authUnavailable", retryAfterTrouble},
		{reply(503, 5, 1, "Bad sequence of commands"), session.ReasonSequence, 422, "other", 0},
	} {
		p := problemFor(c.reply, c.reason.String())
		if p.Status != c.status || p.Reason != c.word || p.RetryAfter != c.wait || p.Detail != c.reply.Text || p.SMTPCode != c.reply.Code {
			t.Errorf("%d, %s: %+v", c.reply.Code, c.reason, p)
		}
	}
}

// Clients try a 5xx again whatever its body says, and some make a permanent failure of a 4xx that was meant for later.
func TestPermanentRefusalsAreNever5xx(t *testing.T) {
	for reason := range session.NumReasons {
		if p := problemFor(reply(550, 0, 0, "no"), reason.String()); p.Status/100 != 4 {
			t.Errorf("%s: %d", reason, p.Status)
		}
		if p := problemFor(reply(451, 0, 0, "later"), reason.String()); p.Status == 503 && p.RetryAfter == 0 {
			t.Errorf("%s: no Retry-After", reason)
		}
	}
	for reason := range problemKinds {
		if p := problemFor(reply(550, 0, 0, "no"), reason); p.Status/100 != 4 && p.Status != 503 {
			t.Errorf("%s: %d", reason, p.Status)
		}
	}
}

func TestProblemsAreWrittenAsJSON(t *testing.T) {
	p := problemFor(reply(550, 1, 1, `say "no"`), "recipient")
	p.Recipients = []recipientResult{{Address: []byte("b@\xff.example"), Reply: reply(550, 1, 1, "No such user")}}
	const want = `{"type":"/openapi.json#/x-problems/recipientRefused","title":"No recipient accepted","status":422,"detail":"say \"no\"","reason":"recipientRefused",` +
		`"smtp_code":550,"enhanced_status":"5.1.1","recipients":[{"address":"b@` + "\uFFFD" + `.example","code":550,"enhanced_status":"5.1.1","text":"No such user"}]}`
	if got := string(p.AppendTo([]byte("kept"))); got != "kept"+want {
		t.Errorf("%s\nand not\n%s", got, want)
	}
	p = httpProblem("idempotency_inflight", "")
	if got := string(p.AppendTo(nil)); got != `{"type":"/openapi.json#/x-problems/idempotencyInFlight","title":"The first request with this key is not done","status":409,"reason":"idempotencyInFlight","retry_after":1}` {
		t.Error(got)
	}
	p = requestProblem(&requestError{Reason: "syntax", Text: "unknown member", Pointer: []byte("/a~1b")})
	p.Type, p.RetryAfter = "about:blank", 1500*time.Millisecond
	if got := string(p.AppendTo(nil)); got != `{"type":"about:blank","title":"Malformed request","status":400,"detail":"unknown member","reason":"syntax","pointer":"/a~1b","retry_after":2}` {
		t.Error(got)
	}
}

// FuzzProblem: whatever is in it, a problem is valid JSON from which its values can be read.
func FuzzProblem(f *testing.F) {
	f.Add("detail", []byte("/pointer"), []byte("a@example.com"), "relay", uint16(550))
	f.Fuzz(func(t *testing.T, detail string, pointer, address []byte, reason string, code uint16) {
		r := reply(400+code%200, 1, 2, detail)
		p := problemFor(r, reason)
		p.Pointer = pointer
		p.Recipients = []recipientResult{{Address: address, Reply: r}}
		text := p.AppendTo(nil)
		var got struct {
			Status     int
			Detail     string
			Pointer    string
			Recipients []struct{ Address, Text string }
		}
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if valid := strings.ToValidUTF8(detail, "\uFFFD"); got.Status != p.Status || len(got.Detail) < len(valid) || len(got.Recipients) != 1 ||
			got.Detail != got.Recipients[0].Text || detail == valid && got.Detail != detail {
			t.Fatalf("%s of %q", text, detail)
		}
	})
}
