package httpedge

import (
	"strconv"
	"time"

	"github.com/fastedge/fastedge/smtpcodec"
)

// problem is the body of an answer that refuses a request (RFC 9457), sent as application/problem+json. Members that are empty or zero
// are left out, but for type, title and status.
type problem struct {
	Type           string // a URI reference; empty: where /openapi.json tells of the reason
	Title          string // the same for every problem with this reason
	Status         int
	Detail         string // for people: the reply's text, or what is wrong where
	Reason         string // the word that a program decides by: reasonWord
	Pointer        []byte // JSON pointer (RFC 6901) to the member at fault; empty when it is none
	SMTPCode       uint16
	EnhancedStatus smtpcodec.EnhancedCode
	Recipients     []recipientResult // those of the request that had been looked at, borrowed from it
	RetryAfter     time.Duration     // in whole seconds, also in the Retry-After header; zero: trying again as it is does not help
}

// problemTypePrefix and the reason make a problem's type: a pointer into the document that this server serves.
const problemTypePrefix = "/openapi.json#/x-problems/"

// problemKind is what all problems with one reason have in common.
type problemKind struct {
	reason  string // the word in the problem
	title   string
	refused int // status when the refusal is permanent; never a 5xx, for some clients try again after one whatever the body says
	later   int // status when it is temporary
}

// problemKinds has the words of session.Reason as keys: those of logs and metrics. In a problem they are written as one word, as in
// JMAP; where JMAP (RFC 8620 §3.6.1, RFC 8621 §7.5) has a name for the same, that is taken. What is not listed is otherProblem.
var problemKinds = map[string]problemKind{
	"syntax":                {"syntax", "Malformed request", 400, 503},
	"not_offered":           {"notOffered", "Not offered here", 422, 503},
	"unknown_parameter":     {"unknownParameter", "Unknown parameter", 422, 503},
	"line_too_long":         {"lineTooLong", "Line too long", 422, 503},
	"bare_newline":          {"bareNewline", "Bare CR or LF in the message", 422, 503},
	"utf8":                  {"utf8", "Needs SMTPUTF8", 422, 503},
	"bad_sender":            {"badSender", "Malformed reverse-path", 422, 503},
	"bad_recipient":         {"invalidRecipients", "Malformed forward-path", 422, 503},
	"recipient":             {"recipientRefused", "No recipient accepted", 422, 503},
	"relay":                 {"relayDenied", "Relaying denied", 403, 503},
	"no_recipients":         {"noRecipients", "No recipients", 422, 503},
	"too_many_recipients":   {"tooManyRecipients", "Too many recipients", 422, 422},
	"size":                  {"tooLarge", "Message too large", 413, 413},
	"loop":                  {"loop", "Mail loop", 422, 503},
	"forged_results":        {"forgedResults", "Authentication-Results in our name", 422, 503},
	"policy":                {"policy", "Refused by policy", 403, 503},
	"denied":                {"denied", "Client denied", 403, 503},
	"rule":                  {"rule", "Refused by a rule", 403, 503},
	"hook":                  {"hook", "Refused by a hook", 403, 503},
	"milter":                {"milter", "Refused by a milter", 403, 503},
	"spf":                   {"spf", "Refused by SPF", 403, 503},
	"dnsbl":                 {"dnsbl", "Client is on a list", 403, 503},
	"message_rate":          {"rateLimit", "Too many messages", 429, 429},
	"too_many_errors":       {"tooManyErrors", "Too many errors", 429, 429},
	"too_many_transactions": {"tooManyTransactions", "Too many messages in one request", 429, 429},
	"auth_failures":         {"authFailures", "Too many failed logins", 429, 429},
	"auth":                  {"authRequired", "Credentials needed", 401, 503},
	"auth_failed":           {"authFailed", "Credentials not accepted", 401, 503},
	"auth_unavailable":      {"authUnavailable", "Credentials can't be checked now", 401, 503},
	"tls":                   {"tlsRequired", "TLS needed", 403, 503},
	"memory":                {"memory", "Short of memory", 422, 503},
	"disk":                  {"disk", "Short of disk space", 422, 503},
	"queue":                 {"queue", "The queue can't take it", 422, 503},
	"validator_failed":      {"validatorFailed", "A check has failed", 422, 503},
	"shutdown":              {"shutdown", "Shutting down", 422, 503},
	"timeout":               {"timeout", "Request came too slowly", 408, 408},
	"data_rate":             {"dataRate", "Request came too slowly", 408, 408},

	// Reasons of HTTP's own, which no session has.
	"forbidden":            {"forbidden", "Not allowed with these credentials", 403, 403},
	"not_found":            {"notFound", "Not found", 404, 404},
	"method":               {"method", "Method not allowed", 405, 405},
	"length_required":      {"lengthRequired", "Length needed", 411, 411},
	"media_type":           {"mediaType", "Unsupported media type", 415, 415},
	"encoding":             {"encoding", "Unsupported content coding", 415, 415},
	"bad_encoding":         {"badEncoding", "The body can't be decompressed", 400, 400},
	"header_size":          {"headerTooLarge", "Request header too large", 431, 431},
	"expectation":          {"expectation", "Expectation can't be met", 417, 417},
	"idempotency_key":      {"idempotencyKey", "Malformed idempotency key", 400, 400},
	"idempotency_mismatch": {"idempotencyMismatch", "Idempotency key used for another message", 422, 422},
	"idempotency_inflight": {"idempotencyInFlight", "The first request with this key is not done", 409, 409},
	"idempotency_full":     {"idempotencyFull", "Too many idempotency keys", 503, 503},
	"too_many_messages":    {"tooManyMessages", "Too many messages in one request", 413, 413},
	"too_busy":             {"tooBusy", "Too many requests at a time", 503, 503},
}

// otherProblem is for a reason without a row.
var otherProblem = problemKind{"other", "Refused", 422, 503}

// What a client is told to wait, by status: until a rate has room again, until the reason has passed, until the first request is done.
const (
	retryAfterRate     = 60 * time.Second
	retryAfterTrouble  = 30 * time.Second
	retryAfterInFlight = time.Second
)

// problemFor gives the problem for a 4yz or 5yz reply. reason is a session.Reason's word, or one of HTTP's own in problemKinds. The
// type, title and reason are constants and detail is the reply's text, so nothing is allocated.
func problemFor(r smtpcodec.Reply, reason string) problem {
	k, ok := problemKinds[reason]
	if !ok {
		k = otherProblem
	}
	p := problem{Title: k.title, Status: k.refused, Detail: r.Text, Reason: k.reason, SMTPCode: r.Code, EnhancedStatus: r.Enhanced}
	if r.Code/100 == 4 {
		p.Status = k.later
	}
	if r.Code == 530 || r.Code == 535 { // RFC 4954 §6, whoever said so
		p.Status = 401
	}
	switch p.Status {
	case 429:
		p.RetryAfter = retryAfterRate
	case 503:
		p.RetryAfter = retryAfterTrouble
	case 409:
		p.RetryAfter = retryAfterInFlight
	}
	return p
}

// httpProblem gives the problem for a reason that no reply stands for: one of HTTP's own, or one that has no session.
func httpProblem(reason, detail string) problem {
	return problemFor(smtpcodec.Reply{Text: detail}, reason)
}

// requestProblem gives the problem for what decodeMessage and bodyReader found wrong.
func requestProblem(err *requestError) problem {
	p := httpProblem(err.Reason, err.Text)
	p.Pointer = err.Pointer
	return p
}

// AppendTo appends the problem as JSON.
func (p *problem) AppendTo(dst []byte) []byte {
	dst = append(dst, `{"type":`...)
	if p.Type != "" {
		dst = appendJSONString(dst, p.Type)
	} else {
		dst = append(append(append(append(dst, '"'), problemTypePrefix...), p.Reason...), '"')
	}
	dst = append(dst, `,"title":`...)
	dst = appendJSONString(dst, p.Title)
	dst = append(dst, `,"status":`...)
	dst = strconv.AppendInt(dst, int64(p.Status), 10)
	if p.Detail != "" {
		dst = append(dst, `,"detail":`...)
		dst = appendJSONString(dst, p.Detail)
	}
	if p.Reason != "" {
		dst = append(dst, `,"reason":`...)
		dst = appendJSONString(dst, p.Reason)
	}
	if len(p.Pointer) > 0 {
		dst = append(dst, `,"pointer":`...)
		dst = appendJSONString(dst, p.Pointer)
	}
	if p.SMTPCode != 0 {
		dst = append(dst, `,"smtp_code":`...)
		dst = strconv.AppendUint(dst, uint64(p.SMTPCode), 10)
		if p.EnhancedStatus != (smtpcodec.EnhancedCode{}) {
			dst = append(dst, `,"enhanced_status":"`...)
			dst = append(appendEnhanced(dst, smtpcodec.Reply{Code: p.SMTPCode, Enhanced: p.EnhancedStatus}), '"')
		}
	}
	if len(p.Recipients) > 0 {
		dst = append(dst, ',')
		dst = appendRecipients(dst, p.Recipients)
	}
	if p.RetryAfter > 0 {
		dst = append(dst, `,"retry_after":`...)
		dst = strconv.AppendInt(dst, p.retrySeconds(), 10)
	}
	return append(dst, '}')
}

// retrySeconds is the value of Retry-After (RFC 9110 §10.2.3), rounded up.
func (p *problem) retrySeconds() int64 { return int64((p.RetryAfter + time.Second - 1) / time.Second) }
