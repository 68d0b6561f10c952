package httpedge

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/fastedge/fastedge/envelope"
	"github.com/fastedge/fastedge/queue"
)

var testID = func() envelope.ID {
	id, err := envelope.ParseID("01jd3z8v6n3m5f7q9r2t4w6y8a")
	if err != nil {
		panic(err)
	}
	return id
}()

var twoResults = []recipientResult{
	{Address: []byte("b@example.net"), Reply: reply(250, 1, 5, "Ok")},
	{Address: []byte(`"q\"q"@example.net`), Reply: reply(550, 1, 1, "No such user")},
}

func TestAnswersAreWrittenAsJSON(t *testing.T) {
	const recipients = `"recipients":[{"address":"b@example.net","code":250,"enhanced_status":"2.1.5","text":"Ok"},` +
		`{"address":"\"q\\\"q\"@example.net","code":550,"enhanced_status":"5.1.1","text":"No such user"}]`
	const id = `"id":"01jd3z8v6n3m5f7q9r2t4w6y8a","durability":"fsync",`
	p := httpProblem("syntax", "unknown member")
	for want, got := range map[string][]byte{
		`{` + id + recipients + `}`:                                         appendAccepted(nil, testID, "fsync", twoResults),
		`{` + id + `"recipients":[]}`:                                       appendAccepted(nil, testID, "fsync", nil),
		`{"valid":true,` + recipients + `}`:                                 appendValidated(nil, twoResults),
		`{"line":3,"status":202,` + id + recipients + `}`:                   appendBatchAccepted(nil, 3, testID, "fsync", false, twoResults),
		`{"line":3,"status":202,"replayed":true,` + id + recipients + `}`:   appendBatchAccepted(nil, 3, testID, "fsync", true, twoResults),
		`{"line":4,"status":400,"problem":` + string(p.AppendTo(nil)) + `}`: appendBatchProblem(nil, 4, &p),
	} {
		if string(got) != want {
			t.Errorf("%s\nand not\n%s", got, want)
		}
	}
}

func TestAnEntryOfTheQueueIsShown(t *testing.T) {
	e := queue.Entry{ID: testID, Metadata: json.RawMessage(`{"a":1}`)}
	if got := string(appendEntry([]byte("kept"), &e)); !strings.HasPrefix(got, `kept{"id":"01jd3z8v6n3m5f7q9r2t4w6y8a"`) || !strings.Contains(got, `"metadata":{"a":1}`) {
		t.Error(got)
	}
	e.Metadata = json.RawMessage(`{"a`)
	if got := string(appendEntry(nil, &e)); !json.Valid([]byte(got)) || strings.Contains(got, "metadata") {
		t.Error(got)
	}
}

// FuzzJSONString: any bytes become a string that means them, each byte that is not UTF-8 being U+FFFD.
func FuzzJSONString(f *testing.F) {
	f.Add([]byte("a\"\\\n\r\t\x00\x1f\x7f\u00e9\u2028\xff\xf0\x9f\x98"))
	f.Fuzz(func(t *testing.T, in []byte) {
		text := appendJSONString(nil, in)
		var got string
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatalf("%q: %s: %v", in, text, err)
		}
		if want := string([]rune(string(in))); got != want { // the conversion does the same
			t.Fatalf("%q: %q and not %q", in, got, want)
		}
		if again := appendJSONString(nil, string(in)); string(again) != string(text) {
			t.Fatalf("%q: %s as bytes, %s as a string", in, text, again)
		}
	})
}

func TestAnswersAllocateNothing(t *testing.T) {
	room := make([]byte, 0, 4096)
	r := reply(550, 1, 1, "No such user")
	if n := testing.AllocsPerRun(100, func() {
		appendAccepted(room, testID, "fsync", twoResults)
		p := problemFor(r, "recipient")
		p.Recipients = twoResults
		p.AppendTo(room)
		appendBatchProblem(room, 1, &p)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAppendAccepted(b *testing.B) {
	b.Run("impl=fastedge", func(b *testing.B) {
		room := make([]byte, 0, 4096)
		b.ReportAllocs()
		for b.Loop() {
			appendAccepted(room, testID, "fsync", twoResults)
		}
	})
	b.Run("impl=naive", func(b *testing.B) {
		type recipient struct {
			Address  string `json:"address"`
			Code     int    `json:"code"`
			Enhanced string `json:"enhanced_status"`
			Text     string `json:"text"`
		}
		type answer struct {
			ID         string      `json:"id"`
			Durability string      `json:"durability"`
			Recipients []recipient `json:"recipients"`
		}
		b.ReportAllocs()
		for b.Loop() {
			a := answer{ID: testID.String(), Durability: "fsync"}
			for _, r := range twoResults {
				e := r.Reply.Enhanced
				a.Recipients = append(a.Recipients, recipient{string(r.Address), int(r.Reply.Code), fmt.Sprintf("%d.%d.%d", e.Class, e.Subject, e.Detail), r.Reply.Text})
			}
			if _, err := json.Marshal(a); err != nil {
				b.Fatal(err)
			}
		}
	})
}
