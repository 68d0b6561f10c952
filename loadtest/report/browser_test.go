//go:build browser

package report

import (
	"context"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestBrowserShowsThePagesWithoutComplaint opens every example in Chromium, light and wide, dark and narrow, and wants a silent console:
// an element that the content security policy stops, a resource that is missing and an error in a script would be written there.
//
//	go test -tags browser -run Browser ./loadtest/report
//
// FASTEDGE_REPORT_SCREENSHOTS names a folder that keeps the pictures.
func TestBrowserShowsThePagesWithoutComplaint(t *testing.T) {
	chromium := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			chromium = path
			break
		}
	}
	if chromium == "" {
		t.Skip("no chromium here: apt-get install chromium fonts-dejavu-core")
	}
	dir := t.TempDir()
	shots := os.Getenv("FASTEDGE_REPORT_SCREENSHOTS")
	if shots == "" {
		shots = dir
	}
	run := func(t *testing.T, args ...string) (stdout, stderr string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		// No sandbox: the pages are ours, and tests may run as root, where Chromium refuses its sandbox.
		common := []string{"--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--user-data-dir=" + t.TempDir()}
		cmd := exec.CommandContext(ctx, chromium, append(common, args...)...)
		var out, err strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &err
		if e := cmd.Run(); e != nil {
			t.Fatalf("%v\n%s", e, err.String())
		}
		return out.String(), err.String()
	}
	console := func(t *testing.T, stderr string) {
		t.Helper()
		for line := range strings.Lines(stderr) {
			if strings.Contains(line, "CONSOLE") {
				t.Errorf("the console says: %s", line)
			}
		}
	}

	// The test can fail: a page with a script that its policy stops, and an image that is missing.
	broken := filepath.Join(dir, "broken.html")
	if err := os.WriteFile(broken, []byte(`<!DOCTYPE html><meta http-equiv="Content-Security-Policy" content="default-src 'none'"><title>x</title><script>1</script><p style="top:0">`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, stderr := run(t, "--dump-dom", "file://"+broken); !strings.Contains(stderr, "CONSOLE") {
		t.Fatalf("Chromium did not report a violated policy, so its silence says nothing:\n%s", stderr)
	}

	for name, page := range examples(t) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, page, 0o644); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			scheme, setting, size string
			paper                 uint32
		}{{"light", "1", "1280,2400", 0xff}, {"dark", "0", "520,2400", 0x12}} {
			t.Run(name+"/"+c.scheme, func(t *testing.T) {
				shot := filepath.Join(shots, strings.TrimSuffix(name, ".html")+"-"+c.scheme+".png")
				_, stderr := run(t, "--blink-settings=preferredColorScheme="+c.setting, "--hide-scrollbars", "--window-size="+c.size, "--screenshot="+shot, "file://"+path)
				console(t, stderr)
				f, err := os.Open(shot)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				picture, err := png.Decode(f)
				if err != nil {
					t.Fatal(err)
				}
				if red, _, _, _ := picture.At(2, 2).RGBA(); red>>8 != c.paper {
					t.Errorf("the paper is %#x in %s, want %#x", red>>8, c.scheme, c.paper)
				}
			})
		}
		t.Run(name+"/dom", func(t *testing.T) {
			dom, stderr := run(t, "--dump-dom", "file://"+path)
			console(t, stderr)
			for _, bad := range []string{"<img", "<script", "<iframe"} {
				if strings.Contains(dom, bad) {
					t.Errorf("an element %s", bad)
				}
			}
			if !strings.Contains(dom, "</main>") {
				t.Error("the page is not there")
			}
		})
	}
}
