package live

import "math"

// drawLine writes one line. Figures are padded to the widest so far, so that columns stay below each other.
func (v *View) drawLine(s *Snapshot) {
	r := &row{width: v.width(math.MaxInt)}
	column := 0
	figure := func(least int, text string) string {
		if column == len(v.pads) {
			v.pads = append(v.pads, least)
		}
		v.pads[column] = max(v.pads[column], len([]rune(text)))
		text = pad(text, v.pads[column])
		column++
		return text
	}
	r.put("", figure(4, count(int64(s.Elapsed.Seconds()))+"s"))
	r.put("", "  "+figure(8, perSecond(s.Rate)))
	r.put("", "  acked "+figure(9, count(s.Acknowledged)))
	r.put("", "  4xx "+figure(1, count(s.Deferred)))
	r.put("", "  5xx "+figure(1, count(s.Refused)))
	r.put("", "  err "+figure(1, count(s.Errors)))
	r.put("", "  in flight "+figure(3, count(int64(s.InFlight))))
	if v.open {
		r.put("", "  waiting "+figure(1, count(int64(s.Waiting)))+"  dropped "+figure(1, count(s.Dropped)))
	}
	r.put("", "  ack p50 "+figure(7, v.latency(s.AckP50))+" p99 "+figure(7, v.latency(s.AckP99)))
	if s.ServerCPU != 0 || s.ServerRSS != 0 {
		r.put("", "  cpu "+figure(4, cores(s.ServerCPU)))
	}
	if s.Phase != "" && s.Phase != "running" {
		r.put("", "  "+printable(s.Phase))
	}
	v.out = append(v.out, r.out...)
	v.newline()
}
