// Package machine looks at the computer a load test runs on: what it is, how fast its disk syncs, and what the target's processes and the
// generator itself use of it.
//
// It reads /proc and asks the kernel; it starts nothing, signals nothing and needs no rights beyond those of the user who owns the
// target. Linux only.
package machine
