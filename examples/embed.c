/* Embeds libffncore in a C program. It computes one SwiGLU block, y = (silu(x Wg^T) * x Wu^T) Wd^T,
 * with the C ABI and with plain loops, prints one line, and returns 0 if the results agree.
 *
 *     cc embed.c -I<folder of ffncore.h> -L<folder of libffncore.so> -lffncore -lm */
#include <ffncore.h>

#include <math.h>
#include <stdio.h>

enum { T = 3, D = 8, F = 20 };

static ffncore_matrix matrix(float *data, int64_t rows, int64_t cols) {
    ffncore_matrix m = {data, rows, cols, cols, 1, FFNCORE_FLOAT32};
    return m;
}

int main(void) {
    static float x[T * D], gate[F * D], up[F * D], down[D * F], y[T * D];
    for (int i = 0; i < T * D; ++i) x[i] = sinf(1.0f * i);
    for (int i = 0; i < F * D; ++i) gate[i] = cosf(2.0f * i), up[i] = sinf(3.0f * i);
    for (int i = 0; i < D * F; ++i) down[i] = cosf(5.0f * i);

    ffncore_forward_args args = {.size = sizeof args};
    args.x = matrix(x, T, D), args.y = matrix(y, T, D);
    args.weights.size = sizeof args.weights;
    args.weights.gate = matrix(gate, F, D), args.weights.up = matrix(up, F, D);
    args.weights.down = matrix(down, D, F);
    ffncore_activation_init(&args.activation, FFNCORE_SILU);
    if (ffncore_ffn_forward(&args) != FFNCORE_OK) return puts(ffncore_last_error()), 1;

    double worst = 0;
    for (int t = 0; t < T; ++t) {
        double h[F];
        for (int f = 0; f < F; ++f) {
            double g = 0, u = 0;
            for (int d = 0; d < D; ++d)
                g += x[t * D + d] * gate[f * D + d], u += x[t * D + d] * up[f * D + d];
            h[f] = g / (1 + exp(-g)) * u;
        }
        for (int d = 0; d < D; ++d) {
            double sum = 0;
            for (int f = 0; f < F; ++f) sum += h[f] * down[d * F + f];
            worst = fmax(worst, fabs(sum - y[t * D + d]));
        }
    }
    printf("ffncore %s (%s): largest deviation %.1e\n", ffncore_version(), ffncore_isa_current(),
           worst);
    return !(worst < 1e-5);
}
