package httpedge

import _ "embed"

// openAPI is the document that /openapi.json serves. What it says of requests and answers is compared with what the server does by tests
// (internal/openapicheck); x-problems in it tells of every reason that a problem can have.
//
//go:embed openapi.json
var openAPI []byte
