// Activation functions of vectors, in float32.
#pragma once

#include <cstdint>

#include "simd.h"

namespace pipezoo {

// `clamped` is of a gate and what it lets through alone: see `let_through`.
enum class Activation : std::int64_t { silu, gelu, gelu_tanh, relu, relu2, sigmoid, tanh, quick_gelu, clamped };

// 1 / (1 + e^-x).
PIPEZOO_INLINE Vector sigmoid(Vector x) {
    return all(1.0f) / (all(1.0f) + exponential(smaller(all(88.0f), zeros() - x)));
}

// x · sigmoid(x), the activation that models call silu or swish.
PIPEZOO_INLINE Vector silu(Vector x) {
    return x / (all(1.0f) + exponential(smaller(all(88.0f), zeros() - x)));
}

// x · (1 + erf(x / sqrt 2)) / 2, to 3 units of the last place also where 1 + erf would cancel.
//
// With z = |x| / sqrt 2 and t = 1 / (1 + z / 2), erfc(z) is e^-z² t p(t), p a polynomial that was fitted to
// e^z² erfc(z) / t on (0, 1] with a relative error below 1.3e-8. The part of x² that float32 loses is kept apart.
PIPEZOO_INLINE Vector gelu(Vector x) {
    const Vector t = all(1.0f) / add_product(all(1.0f), absolute(x), all(0.35355339f));
    Vector p = all(0.0431940146f);
    p = add_product(all(-0.234726459f), p, t);
    p = add_product(all(0.493679672f), p, t);
    p = add_product(all(-0.454955906f), p, t);
    p = add_product(all(0.132164106f), p, t);
    p = add_product(all(-0.0592056513f), p, t);
    p = add_product(all(0.0934609175f), p, t);
    p = add_product(all(0.1753162f), p, t);
    p = add_product(all(0.246884555f), p, t);
    p = add_product(all(0.282093763f), p, t);
    p = add_product(all(0.282094806f), p, t);
    const Vector bounded = smaller(all(16.0f), absolute(x));  // beyond it the exponential is as good as 0
    const Vector square = bounded * bounded, lost = product_less(bounded, bounded, square);
    const Vector power = exponential(all(-0.5f) * square);
    const Vector above = all(0.5f) * t * p * subtract_product(power, power, all(0.5f) * lost);  // of a normal variable
    return choose(below(x, zeros()), x * above, x * (all(1.0f) - above));
}

// The same with erf(x / sqrt 2) as tanh(u), u = sqrt(2 / pi) · (x + 0.044715 x³); x · sigmoid(2 u).
PIPEZOO_INLINE Vector gelu_tanh(Vector x) {
    const Vector twice = all(1.5957691f) * x * add_product(all(1.0f), all(0.044715f) * x, x);
    return x * sigmoid(twice);
}

// Within 3 units of the last place: a polynomial in x² that was fitted to tanh below 0.6, an exponential above.
PIPEZOO_INLINE Vector hyperbolic_tangent(Vector x) {
    const Vector size = absolute(x), square = x * x;
    Vector p = all(-0.00627638912f);
    p = add_product(all(0.0211162157f), p, square);
    p = add_product(all(-0.0538751371f), p, square);
    p = add_product(all(0.133329242f), p, square);
    p = add_product(all(-0.333333313f), p, square);
    const Vector small = add_product(x, x * square, p);
    const Vector grown = exponential(smaller(all(20.0f), size + size));
    const Vector large = all(1.0f) - all(2.0f) / (grown + all(1.0f));
    return choose(below(size, all(0.6f)), small, choose(below(x, zeros()), zeros() - large, large));
}

// One function for all, so that the products that end in one do not grow by each. NaN stays NaN.
[[gnu::noinline]] inline Vector activated(Activation activation, Vector x) {
    switch (activation) {
        case Activation::gelu: return gelu(x);
        case Activation::gelu_tanh: return gelu_tanh(x);
        case Activation::relu: return larger(zeros(), x);
        case Activation::relu2: {
            const Vector positive = larger(zeros(), x);
            return positive * positive;
        }
        case Activation::sigmoid: return sigmoid(x);
        case Activation::tanh: return hyperbolic_tangent(x);
        case Activation::quick_gelu: return x * sigmoid(all(1.702f) * x);
        default: return silu(x);
    }
}

// gate · sigmoid(1.702 · gate) · (up + 1), with gate at most 7 and up between -7 and 7. NaN stays NaN.
[[gnu::noinline]] inline Vector clamped(Vector gate, Vector up) {
    const Vector limit = all(7.0f);
    gate = smaller(limit, gate), up = larger(zeros() - limit, smaller(limit, up));
    return gate * sigmoid(all(1.702f) * gate) * (up + all(1.0f));
}

// activation(gate) · up.
PIPEZOO_INLINE Vector let_through(Activation activation, Vector gate, Vector up) {
    if (activation == Activation::silu) return silu(gate) * up;
    return activation == Activation::clamped ? clamped(gate, up) : activated(activation, gate) * up;
}

}  // namespace pipezoo
