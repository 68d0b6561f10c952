//go:build race

package httpedge

const raceDetector = true
