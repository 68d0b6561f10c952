// Package ledger proves that a mail server lost nothing: what the client side noted in its Book is judged against what the receiving
// side counted in its Receipts.
//
// The unit is a delivery: one message to one recipient. Each message carries a mark (run, sequence number, SHA-256 of its body) in a
// header field, and each recipient's address carries sequence number and position, so that a server may split, reorder and repeat
// messages without confusing the count.
//
// A delivery that was never attempted is Unsent; an acknowledged one must have been received at least once; a refused one must not. Unknown
// is one whose reply was never seen: either is right, and more than once too, because a client would have sent it again.
package ledger
