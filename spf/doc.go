// Package spf decides, by the rules of RFC 7208, whether a host may send mail for a domain. It is a state machine: the caller asks
// for the next DNS query, brings its answer, and at the end there is a result. The package sees no socket, file, clock or goroutine.
//
//	c := spf.New(spf.Params{IP: ip, Helo: "mail.example.com", Sender: "a@example.com"})
//	for q, ok := c.Next(); ok; q, ok = c.Next() {
//		c.Feed(lookup(q))
//	}
//	r := c.Result()
//
// One query is outstanding at a time. A Check belongs to one goroutine at a time; giving it up is forgetting it. Answers and parsed
// records are immutable and may be shared by any number of checks, which is what makes a cached record cost nothing.
//
// What bounds a check (RFC 7208 §4.6.4): ten terms that ask DNS, redirect= among them; ten hosts of an MX answer; ten names of a PTR
// answer; and Params.MaxVoid lookups without an answer. The frames of nested records lie in a fixed array, so there is no recursion
// and a loop of includes or redirects ends after the tenth. The time limit is the caller's, see Check.GiveUp.
//
// RFC 7208 (SPF), RFC 8616 (internationalized mail), RFC 7372 is for those who reply.
package spf
