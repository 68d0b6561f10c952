package policy

// Kind says what sort of validator refused, for the counters and the log. It is a closed set.
type Kind uint8

// The kinds. Validators of others are KindOther.
const (
	KindOther Kind = iota
	KindClients
	KindRate
	KindRecipients
	KindRule
	KindHook
	KindMilter
	KindSPF
	KindDNSBL
	NumKinds
)

// Kinded is a Validator that says its kind. Kind is called once, before any session.
type Kinded interface {
	Validator
	Kind() Kind
}

// KindOf gives a validator's kind.
func KindOf(v Validator) Kind {
	if k, ok := v.(Kinded); ok {
		return k.Kind()
	}
	return KindOther
}

// Kind is Kinded's.
func (*Clients) Kind() Kind    { return KindClients }
func (*Gate) Kind() Kind       { return KindRate } // as a validator it is about the rate of messages
func (*Recipients) Kind() Kind { return KindRecipients }
func (*SPF) Kind() Kind        { return KindSPF }
func (*Results) Kind() Kind    { return KindSPF }
func (*DNSBL) Kind() Kind      { return KindDNSBL }
