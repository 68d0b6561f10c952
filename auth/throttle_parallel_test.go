package auth

import "testing"

func TestExchangesBegunBeforeTheLimitDoNotPassIt(t *testing.T) {
	store := secret()
	s := testService(t, Options{Store: store, Throttle: ThrottleOptions{PerAddress: 3, PerAccount: -1}})
	step := func(x *Exchange, response []byte) Result {
		done := make(chan Outcome, 1)
		x.Step(response, response != nil, func(o Outcome) { done <- o })
		return (<-done).Result
	}
	var begun []*Exchange
	for range 10 {
		x := s.Begin(LOGIN, from("192.0.2.1"))
		if r := step(x, []byte("alice")); r != Continue {
			t.Fatal(r)
		}
		begun = append(begun, x)
	}
	asked := store.calls.Load()
	for _, x := range begun {
		step(x, []byte("wrong"))
	}
	if n := store.calls.Load() - asked; n != 3 {
		t.Errorf("the store was asked %d times, not 3", n)
	}
}
