package policy

// ResultsOptions of a Results.
type ResultsOptions struct {
	// Hostname is ours: the authserv-id (RFC 8601 §2.5). It must be session.Options.AuthservID, so that fields which only claim to be ours go.
	Hostname string
	SPF      *SPF // nil: not checked
	PTR      *PTR // nil: not looked up
	// Logins tells of clients that have logged in.
	Logins bool
	// EnvelopeOnly writes nothing into the message: what was found stands in its envelope only.
	EnvelopeOnly bool
}

// Results asks SPF and PTR in their place, as one validator, and writes what they found into the message, together with who has logged in: one
// Received-SPF (RFC 7208 §9.1) and one Authentication-Results (RFC 8601) for each message, and none for a client that nothing was found out about.
// The check of SPF is waited for then.
type Results struct {
	o    ResultsOptions
	on   Stages
	ours *ourFields
}

// findings is what Results remembers of a session.
type findings struct {
	spf spfState
	ptr *ptrRun
}

// NewResults takes SPF and PTR over: they are not to be asked by themselves.
func NewResults(o ResultsOptions) *Results {
	r := &Results{o: o, on: On(AtMessage), ours: newOurFields(o.Hostname, o.EnvelopeOnly)}
	if o.SPF != nil {
		o.SPF.ours = r.ours
		r.on |= o.SPF.Stages() | On(AtClose)
	}
	if o.PTR != nil {
		r.on |= o.PTR.Stages() | On(AtClose)
	}
	return r
}

// Stages is where SPF and PTR want to be asked, and AtMessage.
func (r *Results) Stages() Stages { return r.on }

// Remembers is Rememberer's.
func (r *Results) Remembers() bool { return true }

// Discreet is ResultsOptions.EnvelopeOnly.
func (r *Results) Discreet() bool { return r.o.EnvelopeOnly }

// Validate asks SPF and PTR, or writes the fields.
func (r *Results) Validate(e *Event) error {
	found, _ := (*e.Slot).(*findings)
	if found == nil {
		if e.Stage == AtClose || e.Stage == AtMessage && !r.tellsLogin(e) {
			return nil
		}
		found = &findings{}
		*e.Slot = found
	}
	switch e.Stage {
	case AtConnect:
		if r.o.PTR != nil {
			found.ptr = r.o.PTR.begin(&e.Client)
		}
		return nil
	case AtMessage:
		r.write(found, e)
		return nil
	case AtClose:
		found.ptr.giveUp()
	}
	if r.o.SPF != nil {
		r.o.SPF.step(&found.spf, e)
	}
	return nil
}

func (r *Results) tellsLogin(e *Event) bool { return r.o.Logins && e.Client.User != "" }

// write sets the fields and the client's name, or does so when SPF has its result.
func (r *Results) write(found *findings, e *Event) {
	host, name := found.ptr.outcome()
	e.Host = host
	if !found.spf.checks() {
		e.Fields = r.appendFields(e.Fields, e, nil, host, name)
		return
	}
	if o, done := found.spf.outcome(); done {
		e.Fields = r.appendFields(e.Fields, e, &o, host, name)
		return
	}
	p := e.Pend()
	found.spf.run.await(func(o spfOutcome) { p.Done(p.Reply, r.appendFields(nil, &p.Event, &o, host, name)) })
}

// appendFields appends the fields; o nil means that SPF was not checked.
func (r *Results) appendFields(fields []byte, e *Event, o *spfOutcome, host string, name iprev) []byte {
	if o == nil && name == iprevUnknown && !r.tellsLogin(e) {
		return fields
	}
	if cap(fields) == 0 {
		fields = make([]byte, 0, 768) // most messages need less
	}
	if o != nil {
		fields = r.ours.appendSPF(fields, e, o)
	} else {
		fields = append(fields, r.ours.results...)
	}
	if name != iprevUnknown {
		fields = appendIPRev(fields, clientIP(e), host, name)
	}
	if r.tellsLogin(e) {
		fields = appendAuthResult(fields, &e.Client)
	}
	return append(fields, "\r\n"...)
}
