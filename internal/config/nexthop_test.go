package config

import "testing"

func TestNextHopsAreReadWithTheirDefaultPorts(t *testing.T) {
	for in, want := range map[string]NextHop{
		"smtp://10.0.0.10":             {false, "tcp", "10.0.0.10:25"},
		"smtp://mail.example.net:26":   {false, "tcp", "mail.example.net:26"},
		"lmtp://mail.example.net":      {true, "tcp", "mail.example.net:24"},
		"smtp://[2001:db8::1]":         {false, "tcp", "[2001:db8::1]:25"},
		"lmtp+unix:///run/dovecot/l":   {true, "unix", "/run/dovecot/l"},
		"smtp+unix:///run/next/socket": {false, "unix", "/run/next/socket"},
	} {
		got, err := ParseNextHop(in)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
		if again, err := ParseNextHop(got.String()); err != nil || again != want {
			t.Errorf("%s: String gives %s: %+v, %v", in, got, again, err)
		}
	}
	for _, bad := range []string{"", "mail.example.net", "http://a", "smtp://", "smtp://a:0", "smtp://a:65536", "smtp://a/b", "smtp://u@a",
		"lmtp+unix://run/socket", "lmtp+unix:///", "smtp:a", "smtp://a?b"} {
		if got, err := ParseNextHop(bad); err == nil {
			t.Errorf("%q taken as %+v", bad, got)
		}
	}
}
