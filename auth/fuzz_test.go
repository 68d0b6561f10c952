package auth

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"
)

// FuzzResponses gives every mechanism any responses, separated by "|". Nothing panics, every exchange ends within MaxSteps responses, and
// an unknown user is told just what a known one is told, as long as neither proves anything.
func FuzzResponses(f *testing.F) {
	for _, seed := range []string{
		"\x00alice\x00wrong", "-|\x00alice\x00secret", "alice|wrong", "-|alice|", "-|alice 00112233445566778899aabbccddeeff",
		"n,,n=alice,r=abc|c=biws,r=abcSRV,p=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=|", "n,a=alice,n=alice,r=abc|c=biws,r=abc,p=AAAA",
		"n,a=alice,\x01auth=Bearer x\x01\x01||", "user=alice\x01auth=Bearer x\x01\x01|", "y,,n=alice,r=abc", "p=tls-exporter,,n=alice,r=abc", "||||||||||",
	} {
		for i := range mechanisms {
			f.Add(byte(i), seed)
		}
	}
	cram, err := NewCRAMKeys("secret")
	if err != nil {
		f.Fatal(err)
	}
	u := scramUser(f, "alice", "secret")
	u.CRAM = &cram
	tokens := secret()
	tokens.mechanisms = "OAUTHBEARER XOAUTH2"
	s := testService(f, Options{Store: Stores(testUsers(f, u), tokens), CRAMMD5: true})
	s.nonce = func() string { return "SRV" }
	certified := client
	certified.Certificate = "alice"
	run := func(t *testing.T, mechanism string, p Peer, responses []string) (results []string) {
		x := s.Begin(mechanism, p)
		defer x.Cancel()
		for i := 0; ; i++ {
			if i > MaxSteps {
				t.Fatalf("%s: no end after %q", mechanism, responses)
			}
			var o Outcome
			switch {
			case i == 0 && responses[0] == "-":
				o = respond(t, x, nil, false)
			case i < len(responses):
				o = respond(t, x, []byte(responses[i]), true)
			default:
				o = respond(t, x, []byte{}, true)
			}
			result := o.Result.String()
			switch {
			case o.Result > Throttled:
				t.Fatalf("%s: %v", mechanism, o.Result)
			case o.Result == Unavailable:
				t.Fatalf("%s: %q: something panicked or cannot tell", mechanism, responses)
			case o.Result == Continue && mechanism != SCRAMSHA256 && mechanism != CRAMMD5:
				result += " " + string(o.Challenge) // there, salts and times differ
			case (o.Result == Success) != (o.User != ""):
				t.Fatalf("%s: %v for %q", mechanism, o.Result, o.User)
			}
			results = append(results, result)
			if o.Result != Continue {
				return results
			}
		}
	}
	f.Fuzz(func(t *testing.T, n byte, input string) {
		mechanism := mechanisms[int(n)%len(mechanisms)]
		responses := strings.Split(input, "|")
		known := run(t, mechanism, certified, responses)
		unknown := certified
		unknown.Certificate = "ali_e"
		// Five bytes for five: lengths stay.
		other := run(t, mechanism, unknown, strings.Split(strings.ReplaceAll(input, "alice", "ali_e"), "|"))
		if known[len(known)-1] != "success" && !reflect.DeepEqual(known, other) && !strings.Contains(input, "ali_e") {
			t.Fatalf("%s %q: %q for a known user, %q for an unknown one", mechanism, input, known, other)
		}
	})
}

// FuzzDovecotReply: any line parses or is an error, and text survives escaping.
func FuzzDovecotReply(f *testing.F) {
	for _, s := range []string{"OK\t1\tuser=alice", "FAIL\t2\tuser=x\ttemp", "CONT\t3\tAAAA", "FAIL\t4\tcode=temp_fail", "OK\t", "CONT\t1\t!", "MECH\tPLAIN", "OK\t-1\tuser=\x01t"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		_, r, ok, err := parseDovecotReply(line)
		if ok && err != nil {
			t.Fatalf("%q: both", line)
		}
		if ok && r.over && r.err == nil && r.user == "" {
			t.Fatalf("%q: success for nobody", line)
		}
		escaped := escapeDovecot(line)
		if strings.ContainsAny(escaped, "\t\r\n\x00") || unescapeDovecot(escaped) != line {
			t.Fatalf("%q: escaped %q", line, escaped)
		}
	})
}

// FuzzOAuthBearerResponse: what our parser accepts, go-sasl reads as one name and one token that stand in the response.
func FuzzOAuthBearerResponse(f *testing.F) {
	f.Add([]byte("n,a=a=3Db,\x01auth=Bearer x\x01\x01"))
	f.Add([]byte("n,a=a=2Cb,\x01auth=Bearer x\x01\x01"))
	f.Add([]byte("y,,\x01host=h\x01port=25\x01auth=bearer x=\x01more=1\x01\x01"))
	f.Fuzz(func(t *testing.T, response []byte) {
		plain, err := plainOAuthBearer(response)
		if err != nil {
			return
		}
		asked := 0
		server := sasl.NewOAuthBearerServer(func(o sasl.OAuthBearerOptions) *sasl.OAuthBearerError {
			asked++
			name := strings.NewReplacer("=", "=3D", ",", "=2C").Replace(o.Username)
			if !validToken(o.Token) || !bytes.Contains(response, []byte(" "+o.Token+"\x01")) {
				t.Fatalf("%q: token %q", response, o.Token)
			}
			if name == "" && !bytes.Contains(response, []byte(",,\x01")) || name != "" && !bytes.Contains(response, []byte(",a="+name+",\x01")) {
				t.Fatalf("%q: name %q", response, o.Username)
			}
			return nil
		})
		if _, done, err := server.Next(plain); asked != 1 || !done || err != nil {
			t.Fatalf("%q as %q: asked %d times, %v %v", response, plain, asked, done, err)
		}
	})
}
