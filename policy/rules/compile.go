package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/parser"
	"github.com/expr-lang/expr/vm"

	"github.com/fastedge/fastedge/policy"
)

// Bounds of one expression.
const (
	// MaxExpressionBytes is how long an expression may be.
	MaxExpressionBytes = 8 << 10
	// maxNodes is how many operators, names and constants it may have; the length allows fewer in most cases.
	maxNodes = 2000
	// maxWork is how many steps it may take: a node is one, and what stands in any, all or none counts once for each element. At some
	// 20 ns for a step that is 0.2 ms.
	maxWork = 10_000
	// maxPatternSize is how many instructions a pattern may compile to, and patternWork what it counts as.
	maxPatternSize = 500
	patternWork    = 50
)

// functions that may be called, besides in_network. The bool says that it goes through an array.
var functions = map[string]bool{
	"len": false, "lower": false, "upper": false, "trim": false, "trimPrefix": false, "trimSuffix": false, "indexOf": false,
	"lastIndexOf": false, "any": true, "all": true, "none": true,
}

var operators = []string{
	"==", "!=", "<", ">", "<=", ">=", "&&", "and", "||", "or", "in", "contains", "startsWith", "endsWith", "matches", "+", "-", "*", "/", "%",
}

const inNetwork = "in_network"

// compile checks an expression and makes a program of it. The facts and networks that it uses are added to st.
func compile(when string, at policy.Stage, st *stage) (_ *vm.Program, problem *Error) {
	if strings.TrimSpace(when) == "" {
		return nil, &Error{Message: "an expression is needed"}
	}
	if len(when) > MaxExpressionBytes {
		return nil, &Error{Offset: MaxExpressionBytes, Message: fmt.Sprintf("an expression has at most %d bytes", MaxExpressionBytes)}
	}
	// Whatever the expression language makes of odd input is no reason to end the program.
	defer func() {
		if r := recover(); r != nil {
			problem = &Error{Message: fmt.Sprintf("cannot be compiled: %v", r)}
		}
	}()
	tree, err := parser.Parse(when)
	if err != nil {
		return nil, problemOf(err, when)
	}
	w := &walker{at: at, when: when}
	if work := w.walk(tree.Node, false); w.problem == nil && work > maxWork {
		w.wrong(tree.Node, "the expression takes up to %d steps, %d are allowed", work, maxWork)
	}
	if w.problem != nil {
		return nil, w.problem
	}
	patch := &patcher{known: len(st.networks)}
	env := map[string]any{}
	for _, f := range w.facts {
		env[f.name] = f.kind
	}
	for i := range w.calls {
		env[networkName(patch.known+i)] = false
	}
	program, err := expr.Compile(when, expr.Patch(patch), expr.Env(env), expr.AsBool(), expr.WarnOnAny(), expr.MaxNodes(maxNodes))
	if err != nil {
		return nil, problemOf(err, when)
	}
	for _, f := range w.facts {
		if !slices.ContainsFunc(st.facts, func(have fact) bool { return have.name == f.name }) {
			st.facts = append(st.facts, *f)
		}
	}
	for i, n := range w.calls {
		n.name = networkName(patch.known + i)
		st.networks = append(st.networks, n)
	}
	return program, nil
}

// networkName is the fact that an in_network becomes. Nobody can write it: names have no blanks.
func networkName(i int) string { return "network " + strconv.Itoa(i) }

// patcher puts facts in place of in_network, in the order in which walker has met them.
type patcher struct{ known, met int }

// Visit is called for each node, after those in it.
func (p *patcher) Visit(node *ast.Node) {
	if call, ok := (*node).(*ast.CallNode); ok {
		if callee, ok := call.Callee.(*ast.IdentifierNode); ok && callee.Value == inNetwork {
			ast.Patch(node, &ast.IdentifierNode{Value: networkName(p.known + p.met)})
			p.met++
		}
	}
}

// walker looks at each node before anything is compiled.
type walker struct {
	at      policy.Stage
	when    string
	facts   []*fact
	calls   []network
	problem *Error // the first
}

func (w *walker) wrong(n ast.Node, format string, args ...any) {
	if w.problem == nil {
		w.problem = &Error{Offset: byteOffset(w.when, n.Location().From), Message: fmt.Sprintf(format, args...)}
	}
}

// walk gives the steps that n takes. It goes on after a problem, which is only more of the same.
func (w *walker) walk(n ast.Node, predicate bool) (work int) {
	switch n := n.(type) {
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.StringNode:
		return 1
	case *ast.PointerNode:
		if n.Name != "" || !predicate {
			w.wrong(n, "# stands for an element within any, all and none")
		}
		return 1
	case *ast.IdentifierNode:
		w.fact(n)
		return 1
	case *ast.UnaryNode:
		return 1 + w.walk(n.Node, predicate)
	case *ast.BinaryNode:
		if !slices.Contains(operators, n.Operator) {
			w.wrong(n, "the operator %s is not offered", n.Operator)
		}
		work = 1 + w.walk(n.Left, predicate)
		if n.Operator == "matches" {
			w.pattern(n.Right)
			return work + patternWork
		}
		return work + w.walk(n.Right, predicate)
	case *ast.ConditionalNode:
		return 1 + w.walk(n.Cond, predicate) + w.walk(n.Exp1, predicate) + w.walk(n.Exp2, predicate)
	case *ast.ArrayNode:
		for _, element := range n.Nodes {
			work += w.walk(element, predicate)
		}
		return 1 + work
	case *ast.PredicateNode:
		return w.walk(n.Node, true)
	case *ast.BuiltinNode:
		return w.builtin(n, predicate)
	case *ast.CallNode:
		if callee, ok := n.Callee.(*ast.IdentifierNode); ok && callee.Value == inNetwork {
			w.network(n)
		} else {
			w.wrong(n, "there is no function %s", n.Callee.String())
		}
		return 1
	}
	w.wrong(n, "%s is not offered in rules", describe(n))
	return 1
}

func describe(n ast.Node) string {
	switch n.(type) {
	case *ast.VariableDeclaratorNode:
		return "let"
	case *ast.SequenceNode:
		return "a sequence with ;"
	case *ast.MemberNode, *ast.ChainNode, *ast.SliceNode:
		return "access to a member or element"
	case *ast.MapNode, *ast.PairNode:
		return "a map"
	case *ast.NilNode:
		return "nil"
	}
	return "this"
}

func (w *walker) fact(n *ast.IdentifierNode) {
	f := factNamed(n.Value)
	switch {
	case f == nil && n.Value == inNetwork:
		w.wrong(n, `in_network is a function: in_network(client_ip, "10.0.0.0/8")`)
	case f == nil:
		w.wrong(n, "%s", unknownFact(n.Value))
	case !f.from.Has(w.at):
		w.wrong(n, "%s is not known at %s, only at %s", f.name, w.at, stageWords(f.from))
	default:
		if !slices.Contains(w.facts, f) {
			w.facts = append(w.facts, f)
		}
	}
}

func unknownFact(name string) string {
	s := "there is no fact " + name
	for _, f := range facts {
		// The most common slip: sender.domain, rcpt, SenderDomain.
		if plain := strings.NewReplacer("_", "", ".", ""); strings.EqualFold(plain.Replace(f.name), plain.Replace(name)) {
			return s + "; " + f.name + " is meant?"
		}
	}
	return s
}

func stageWords(set policy.Stages) string {
	var words []string
	for st := policy.AtConnect; st <= policy.AtMessage; st++ {
		if set.Has(st) {
			words = append(words, st.String())
		}
	}
	return strings.Join(words, ", ")
}

func (w *walker) builtin(n *ast.BuiltinNode, predicate bool) (work int) {
	loops, known := functions[n.Name]
	if !known {
		w.wrong(n, "the function %s is not offered in rules", n.Name)
		return 1
	}
	if !loops {
		for _, arg := range n.Arguments {
			work += w.walk(arg, predicate)
		}
		return 1 + work
	}
	if predicate {
		w.wrong(n, "%s cannot stand within any, all or none", n.Name)
		return 1
	}
	if len(n.Arguments) != 2 {
		w.wrong(n, "%s takes an array and a condition", n.Name)
		return 1
	}
	array, ok := n.Arguments[0].(*ast.ArrayNode)
	if !ok {
		w.wrong(n.Arguments[0], `%s goes through an array that is written out: %s(["a", "b"], ...)`, n.Name, n.Name)
		return 1
	}
	return 1 + w.walk(array, false) + max(len(array.Nodes), 1)*w.walk(n.Arguments[1], false)
}

// pattern wants a constant: one that came from a client would be compiled for each, and be the client's.
func (w *walker) pattern(n ast.Node) {
	s, ok := n.(*ast.StringNode)
	if !ok {
		w.wrong(n, "a pattern must be a constant")
		return
	}
	re, err := syntax.Parse(s.Value, syntax.Perl)
	if err != nil {
		w.wrong(n, "%s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		return
	}
	if program, err := syntax.Compile(re.Simplify()); err != nil || len(program.Inst) > maxPatternSize {
		w.wrong(n, "the pattern is too large")
	}
}

func (w *walker) network(n *ast.CallNode) {
	const usage = `in_network takes client_ip or proxy_ip, then networks: in_network(client_ip, "10.0.0.0/8")`
	if len(n.Arguments) < 2 {
		w.wrong(n, usage)
		return
	}
	which, ok := n.Arguments[0].(*ast.IdentifierNode)
	if !ok || which.Value != "client_ip" && which.Value != "proxy_ip" {
		w.wrong(n.Arguments[0], usage)
		return
	}
	var prefixes []netip.Prefix
	for _, arg := range n.Arguments[1:] {
		s, ok := arg.(*ast.StringNode)
		if !ok {
			w.wrong(arg, "a network must be a constant")
			return
		}
		prefix, err := parsePrefix(s.Value)
		if err != nil {
			w.wrong(arg, "%q is neither an address nor a network like 10.0.0.0/8", s.Value)
			return
		}
		prefixes = append(prefixes, prefix)
	}
	w.calls = append(w.calls, network{proxy: which.Value == "proxy_ip", set: policy.NewNetworks(prefixes)})
}

func parsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

// problemOf takes what the expression language says.
func problemOf(err error, when string) *Error {
	if at, ok := errors.AsType[*file.Error](err); ok {
		return &Error{Offset: byteOffset(when, at.From), Message: at.Message}
	}
	return &Error{Message: err.Error()}
}

// byteOffset converts an offset in runes.
func byteOffset(s string, runes int) int {
	for i := range s {
		if runes == 0 {
			return i
		}
		runes--
	}
	return len(s)
}
