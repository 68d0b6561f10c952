//go:build !race

package httpedge

const raceDetector = false
