// A module of its own: what is compared with fastedge is no dependency of it.
module github.com/fastedge/fastedge/bench/compare/gopeers

go 1.26.0

require github.com/emersion/go-smtp v0.24.0

require github.com/emersion/go-sasl v0.0.0-20241020182733-b788ff22d5a6 // indirect
