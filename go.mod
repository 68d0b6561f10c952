module github.com/fastedge/fastedge

go 1.26

require (
	github.com/alecthomas/kong v1.17.0
	github.com/panjf2000/gnet/v2 v2.10.0
	github.com/pelletier/go-toml/v2 v2.4.3
)
