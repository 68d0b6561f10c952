package envelope

import "testing"

// poisoning is set in test binaries: a released envelope's addresses are overwritten, so that a slice kept too long shows.
var poisoning = testing.Testing()
