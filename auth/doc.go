// Package auth runs SASL exchanges (RFC 4422, RFC 4954) and checks credentials against a users file, an HTTP service or Dovecot.
package auth
