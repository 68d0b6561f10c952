package config

import (
	"slices"
	"strings"
	"testing"
)

// By default only this machine posts, and without a word about it there is no address that strangers could post to.
func TestPostingWithoutCredentialsIsForThisMachine(t *testing.T) {
	c := mustLoad(t, "[[listen]]\naddress = \"127.0.0.1:80\"\nprotocol = \"http\"\n[[listen]]\naddress = \"127.0.0.1:81\"\n"+
		"[[listen]]\nname = \"x\"\naddress = \"127.0.0.1:82\"\nprotocol = \"http\"\npost_from = [\"10.0.0.0/8\"]\n", nil)
	if !slices.Equal(c.Listen[0].PostFrom, loopback) || len(c.Listen[1].PostFrom) != 0 || len(c.Listen[2].PostFrom) != 1 {
		t.Errorf("%+v", c.Listen)
	}
	none := mustLoad(t, "", nil)
	if len(none.Listen) != 2 || none.Listen[1].Protocol != "http" || none.Listen[1].Address.Addr != "127.0.0.1:8025" || !slices.Equal(none.Listen[1].PostFrom, loopback) {
		t.Errorf("%+v", none.Listen)
	}
	if &none.Listen[1].PostFrom[0] == &loopback[0] {
		t.Error("the default is shared")
	}
}

// An HTTP listener that other machines reach says who may post there, and to where.
func TestOpenPostGuard(t *testing.T) {
	for _, c := range []struct {
		address, postFrom, relayFrom, accept, auth string
		fine                                       bool
	}{
		{"127.0.0.1:80", "", "", "", "", true},
		{"127.0.0.1:80", `"0.0.0.0/0"`, `"0.0.0.0/0"`, "", "", true}, // only this machine can get there
		{":80", "", "", "", "", false},
		{":80", "", "", `"example.net"`, "", false},
		{":80", "", `"10.0.0.0/8"`, "", "", false},
		{":80", `"10.0.0.0/8"`, "", "", "", false},
		{":80", `"10.0.0.0/8"`, `"10.0.0.0/8"`, "", "", true},
		{":80", `"10.0.0.0/8"`, "", `"example.net"`, "", true},
		{":80", `"0.0.0.0/0", "::/0"`, "", `"example.net"`, "", true},
		{":80", `"0.0.0.0/0"`, `"10.0.0.0/8"`, "", "", true},
		{":80", `"0.0.0.0/0"`, `"0.0.0.0/0"`, `"example.net"`, "", false},
		{":80", `"10.0.0.0/8"`, `"0.0.0.0/1", "128.0.0.0/1"`, `"example.net"`, "", false},
		{":80", "", "", "", `auth = ["BEARER"]`, true},
		{":80", "", `"0.0.0.0/0"`, "", `auth = ["BEARER"]`, false},
		{":80", `"10.0.0.0/8"`, "", "", `auth = ["BEARER"]`, false},
		{":80", `"10.0.0.0/8"`, "", "", "auth = [\"BEARER\"]\nauth_required = true", true},
		{"127.0.0.1:80\"\nproxy_protocol_from = [\"127.0.0.1\"]\nname = \"x", "", "", "", "", true},
		{"127.0.0.1:80\"\nproxy_protocol_from = [\"127.0.0.1\"]\nname = \"x", "", `"0.0.0.0/0"`, "", "", false},
		{"unix:/run/h", "", "", "", "", false}, // not served
	} {
		text := "auth.keys = \"/k\"\ntls.certificates = [{cert = \"/c\", key = \"/k\"}]\ndomains.accept = [" + c.accept + "]\n[[listen]]\nprotocol = \"http\"\naddress = \"" +
			c.address + "\"\n" + c.auth + "\n"
		if c.auth != "" {
			text += "tls = \"required\"\n"
		}
		if c.postFrom != "" {
			text += "post_from = [" + c.postFrom + "]\n"
		}
		if c.relayFrom != "" {
			text += "relay_from = [" + c.relayFrom + "]\n"
		}
		if _, err := load("f.toml", []byte(text), nil, nil); (err == nil) != c.fine {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// The largest message fits into a line of a batch, whatever was said about its size.
func TestLineOfABatchFollowsTheMessageSize(t *testing.T) {
	for text, want := range map[string]Size{
		"":                               34198 * kib,
		"limits.message_size = \"1KiB\"": 66 * kib,
		"limits.message_size = \"2GiB\"\nlimits.memory = \"2GiB\"": 1 * gib, // no more than a batch
		"http.batch_line = \"1MiB\"":                               1 * mib,
	} {
		c := mustLoad(t, text, nil)
		if c.HTTP.BatchLine != want {
			t.Errorf("%s: %v", text, c.HTTP.BatchLine)
		}
		if c.Origin("http.batch_line").Kind == "default" && c.HTTP.BatchLine < c.HTTP.BatchBytes && c.HTTP.BatchLine < c.Limits.MessageSize/3*4 {
			t.Errorf("%s: no room for %v in base64", text, c.Limits.MessageSize)
		}
	}
	if c := mustLoad(t, "", []string{"FASTEDGE_LIMITS_MESSAGE_SIZE=1KiB"}); c.HTTP.BatchLine != 66*kib {
		t.Error(c.HTTP.BatchLine)
	}
}

func TestPasswordsAreNotShown(t *testing.T) {
	c := mustLoad(t, "queue.engine = \"jetstream\"\nqueue.jetstream = { user = \"alice\", password = \"hunter2\" }\n", nil)
	var text strings.Builder
	if err := c.Show(&text); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text.String(), "hunter2") || !strings.Contains(text.String(), "# password is set, and not shown") {
		t.Error(text.String())
	}
	found := false
	for _, s := range c.Settings() {
		if strings.Contains(s.Value, "hunter2") {
			t.Error(s)
		}
		found = found || s == Setting{"queue.jetstream.password", "(not shown)", "f.toml:2"}
	}
	if !found {
		t.Error(c.Settings())
	}
	for _, text := range []string{
		"queue.jetstream.password = \"hunter2\"\n",
		"queue.engine = \"jetstream\"\nqueue.jetstream.password = \"hunter2\"\n",
		"queue.jetstream.password = \"hunter2\n",
		"queue.jetstream.password = 'hunter2\n",
		"queue.jetstream.\"password\" = 'hunter2' x\n",
		"queue.jetstream.password = hunter2\n",
		"queue.jetstream.password = \"\"\"hunter2\"\"\" x\n",
		"queue.jetstream = { user = 5, password=\"hun\\\"hunter2\", window = 0 }\n",
		"queue.engine = \"jetstream\"\nqueue.jetstream.url = \"nats://alice:hunter2@a\"\n",
		"queue.engine = \"jetstream\"\nqueue.jetstream.url = \"//alice:hunter2@a\"\n",
		"queue.engine = \"jetstream\"\nqueue.jetstream = { user = \"alice\", password = \"hunter2\", credentials = \"/c\" }\n",
	} {
		if got := problemsOf(t, text, nil).Error(); strings.Contains(got, "hunter2") {
			t.Error(got)
		}
	}
	if got := problemsOf(t, "", []string{"FASTEDGE_QUEUE_JETSTREAM_PASSWORD=hunter2"}).Error(); strings.Contains(got, "hunter2") {
		t.Error(got)
	}
}

func TestServersAreReadFromOneText(t *testing.T) {
	c := mustLoad(t, "queue.engine = \"jetstream\"\n", []string{"FASTEDGE_QUEUE_JETSTREAM_URL=nats://a:1, tls://b"})
	if !slices.Equal(c.Queue.JetStream.URL, []string{"nats://a:1", "tls://b"}) || !c.UsesJetStream() || c.UsesSpool() {
		t.Errorf("%q", c.Queue.JetStream.URL)
	}
	many := "nats://a" + strings.Repeat(",nats://a", maxServersNATS-1)
	mustLoad(t, "queue = { engine = \"jetstream\", jetstream.url = \""+many+"\" }", nil)
	for _, bad := range []string{"", ",", "nats://a,", "a", "nats://", "nats://a:0", "nats://a/b", "nats://a?b", "nats://u@a", "ws://a", many + ",nats://a"} {
		problemsOf(t, "queue = { engine = \"jetstream\", jetstream.url = \""+bad+"\" }", nil)
	}
}

func TestHTTPHasItsDescriptors(t *testing.T) {
	with := mustLoad(t, "listen = [{ address = '127.0.0.1:80', protocol = 'http' }]\nhttp.connections = 100", nil)
	without := mustLoad(t, "listen = [{ address = '127.0.0.1:80' }]\nhttp.connections = 100", nil)
	if with.Descriptors() != without.Descriptors()+100 {
		t.Error(with.Descriptors(), without.Descriptors())
	}
	nats := mustLoad(t, "listen = [{ address = '127.0.0.1:80' }]\nqueue.engine = 'jetstream'", nil)
	if nats.Descriptors() != without.Descriptors()+natsDescriptors {
		t.Error(nats.Descriptors(), without.Descriptors())
	}
}
