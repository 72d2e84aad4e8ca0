// Strata's kernels for a CPU. Compiled on first use by strata/kernels/native.py, which says what each function is for;
// strata/kernels/backend.py says what it computes. Plain C interface, row-major fp32 arrays, int64 numbers.
//
// Every sum is taken in the order of its list by one thread, so results do not depend on the number of threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <vector>

#include <omp.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#include <immintrin.h>
#define STRATA_INT8 1
#else
#define STRATA_INT8 0
#endif

namespace {

using i64 = int64_t;
using std::vector;

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// ---------------------------------------------------------------------------------------------- vectors of floats

inline void prefetch(const float* row, i64 d) {
    for (i64 i = 0; i < d; i += 16) __builtin_prefetch(row + i);
}

inline float dot(const float* a, const float* b, i64 d) {
    // Sums side by side: the order of the additions is fixed, and the processor need not wait for each.
    i64 i = 0;
#if STRATA_INT8
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    for (; i + 64 <= d; i += 64) {
        s0 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), s0);
        s1 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 16), _mm512_loadu_ps(b + i + 16), s1);
        s2 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 32), _mm512_loadu_ps(b + i + 32), s2);
        s3 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 48), _mm512_loadu_ps(b + i + 48), s3);
    }
    for (; i < d; i += 16) {
        const __mmask16 rest = d - i >= 16 ? __mmask16(0xffff) : __mmask16((1u << (d - i)) - 1);
        s0 = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(rest, a + i), _mm512_maskz_loadu_ps(rest, b + i), s0);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3)));
#else
    constexpr i64 kLanes = 32;
    float sums[kLanes] = {0};
    for (; i + kLanes <= d; i += kLanes)
#pragma omp simd
        for (i64 l = 0; l < kLanes; ++l) sums[l] += a[i + l] * b[i + l];
    for (i64 l = 0; i < d; ++i, ++l) sums[l] += a[i] * b[i];
    for (i64 width = kLanes / 2; width > 0; width /= 2)
        for (i64 l = 0; l < width; ++l) sums[l] += sums[l + width];
    return sums[0];
#endif
}

inline void add_scaled(float* to, float factor, const float* row, i64 d) {
#pragma omp simd
    for (i64 i = 0; i < d; ++i) to[i] += factor * row[i];
}

// ---------------------------------------------------------------------------------------------- choosing the largest

inline i64 count_from(const float* scores, i64 n, float floor) {
    i64 i = 0, count = 0;
#if STRATA_INT8
    const __m512 limit = _mm512_set1_ps(floor);
    for (; i + 16 <= n; i += 16)
        count += __builtin_popcount(_mm512_cmp_ps_mask(_mm512_loadu_ps(scores + i), limit, _CMP_GE_OQ));
#endif
    for (; i < n; ++i) count += scores[i] >= floor;
    return count;
}

// A floor that at least k of the scores reach, and few more: by bisection, exact enough when at most k/8 too many do.
// With fewer than k comparable numbers (NaN is none) it is -infinity.
float floor_of(const float* scores, i64 n, i64 k) {
    if (n < k) return kLowest;
    float low = std::numeric_limits<float>::infinity(), high = kLowest;
    i64 first = 0;
#if STRATA_INT8
    __m512 lows = _mm512_set1_ps(low), highs = _mm512_set1_ps(high);
    for (; first + 16 <= n; first += 16) {
        lows = _mm512_min_ps(_mm512_loadu_ps(scores + first), lows);
        highs = _mm512_max_ps(_mm512_loadu_ps(scores + first), highs);
    }
    low = _mm512_reduce_min_ps(lows), high = _mm512_reduce_max_ps(highs);
#endif
    for (; first < n; ++first) {
        low = scores[first] < low ? scores[first] : low;
        high = scores[first] > high ? scores[first] : high;
    }
    if (!(count_from(scores, n, low) >= k) || !std::isfinite(low) || !std::isfinite(high)) return kLowest;
    for (int round = 0; round < 24; ++round) {
        const float middle = low + 0.5f * (high - low);
        if (!(middle > low)) break;
        const i64 count = count_from(scores, n, middle);
        if (count >= k) {
            low = middle;
            if (count <= k + k / 8) break;
        } else {
            high = middle;
        }
    }
    return low;
}

struct Candidates {
    vector<float> scores;
    vector<int32_t> latents;
    i64 n = 0;

    void reserve(i64 more) {
        if (i64(scores.size()) < n + more + 16) {
            scores.resize(2 * (n + more) + 1024);
            latents.resize(2 * (n + more) + 1024);
        }
    }

    // Append those of `n_scores` scores that reach the floor; latents are numbered from `first`.
    void append(const float* row, i64 n_scores, int32_t first, float floor) {
        reserve(n_scores);
        float* to = scores.data();
        int32_t* name = latents.data();
        i64 i = 0, found = n;
#if STRATA_INT8
        const __m512 limit = _mm512_set1_ps(floor);
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (; i + 16 <= n_scores; i += 16) {
            const __m512 sixteen = _mm512_loadu_ps(row + i);
            const __mmask16 reached = _mm512_cmp_ps_mask(sixteen, limit, _CMP_GE_OQ);
            if (!reached) continue;
            const __m512i numbers = _mm512_add_epi32(_mm512_set1_epi32(int32_t(first + i)), lanes);
            _mm512_storeu_ps(to + found, _mm512_maskz_compress_ps(reached, sixteen));
            _mm512_storeu_si512(name + found, _mm512_maskz_compress_epi32(reached, numbers));
            found += __builtin_popcount(reached);
        }
#endif
        for (; i < n_scores; ++i)
            if (row[i] >= floor) {
                to[found] = row[i];
                name[found++] = int32_t(first + i);
            }
        n = found;
    }

    void drop_below(float floor) {
        i64 left = 0;
        for (i64 i = 0; i < n; ++i) {
            scores[left] = scores[i];
            latents[left] = latents[i];
            left += scores[i] >= floor;
        }
        n = left;
    }

    void drop_smallest() {
        i64 smallest = 0;
        for (i64 i = 1; i < n; ++i) smallest = scores[i] <= scores[smallest] ? i : smallest;
        for (i64 i = smallest + 1; i < n; ++i) scores[i - 1] = scores[i], latents[i - 1] = latents[i];
        --n;
    }
};

// Maxima of groups of a row's scores, so that a floor is found on few numbers. At most k groups can hold one of the k
// largest, so a floor that k maxima reach is reached by k scores. A group is every 16th score of a span.
struct Maxima {
    vector<float> of;
    mutable vector<int32_t> starts;
    i64 size = 1, span = 16, full = 0;  // scores in a group, scores in a span of 16 groups, scores in whole spans

    // Take them; gives their number. Scores after the last whole span stand for themselves.
    i64 take(const float* row, i64 n, i64 k) {
        size = 8;
        while (size > 1 && n / size < 4 * k) size /= 2;
        span = 16 * size, full = n / span * span;
        if (i64(of.size()) < full / size + n - full) of.resize(2 * n + 1024);
        i64 m = 0;
        for (i64 start = 0; start < full; start += span, m += 16) {
#if STRATA_INT8
            __m512 best = _mm512_loadu_ps(row + start);
            for (i64 s = 16; s < span; s += 16) best = _mm512_max_ps(best, _mm512_loadu_ps(row + start + s));
            _mm512_storeu_ps(&of[m], best);
#else
            for (i64 l = 0; l < 16; ++l) of[m + l] = row[start + l];
            for (i64 s = 16; s < span; s += 16)
                for (i64 l = 0; l < 16; ++l) of[m + l] = std::max(of[m + l], row[start + s + l]);
#endif
        }
        for (i64 i = full; i < n; ++i) of[m++] = row[i];
        return m;
    }

    // Append the scores that reach the floor, looking only into the groups whose maximum does.
    void append_to(Candidates& found, const float* row, i64 n, int32_t first, float floor) const {
#if STRATA_INT8
        found.reserve(n);
        if (i64(starts.size()) < full / size + 16) starts.resize(2 * full / size + 1024);
        const __m512 limit = _mm512_set1_ps(floor);
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        i64 n_groups = 0;
        for (i64 start = 0, m = 0; start < full; start += span, m += 16) {
            const __mmask16 reached = _mm512_cmp_ps_mask(_mm512_loadu_ps(&of[m]), limit, _CMP_GE_OQ);
            const __m512i begin = _mm512_add_epi32(_mm512_set1_epi32(int32_t(start)), lanes);
            _mm512_storeu_si512(&starts[n_groups], _mm512_maskz_compress_epi32(reached, begin));
            n_groups += __builtin_popcount(reached);
        }
        const __mmask16 members = __mmask16((1u << size) - 1);
        const __m512i steps = _mm512_slli_epi32(lanes, 4);
        i64 number = found.n;
        for (i64 g = 0; g < n_groups; ++g) {
            const __m512i places = _mm512_add_epi32(_mm512_set1_epi32(starts[g]), steps);
            const __m512 scores = _mm512_mask_i32gather_ps(_mm512_set1_ps(kLowest), members, places, row, 4);
            const __mmask16 reached = _mm512_mask_cmp_ps_mask(members, scores, limit, _CMP_GE_OQ);
            const __m512i names = _mm512_add_epi32(places, _mm512_set1_epi32(first));
            _mm512_storeu_ps(&found.scores[number], _mm512_maskz_compress_ps(reached, scores));
            _mm512_storeu_si512(&found.latents[number], _mm512_maskz_compress_epi32(reached, names));
            number += __builtin_popcount(reached);
        }
        found.n = number;
        found.append(row + full, n - full, int32_t(first + full), floor);
#else
        found.append(row, n, first, floor);
#endif
    }

    i64 add(const Candidates& found, i64 m) {
        if (i64(of.size()) < m + found.n) of.resize(m + found.n);
        std::memcpy(&of[m], found.scores.data(), found.n * sizeof(float));
        return m + found.n;
    }
};

// The k largest of the candidates. Where there are fewer (NaN), other latents fill up, so that the NaN is seen.
void take_largest(Candidates& found, i64 k, i64 d_sae, float* values, i64* latents) {
    found.drop_below(floor_of(found.scores.data(), found.n, k));
    if (found.n > 2 * k + 16) {  // many equal ones
        const float* scores = found.scores.data();
        vector<float> sorted(scores, scores + found.n);
        std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<float>());
        i64 n_equal = k - count_from(scores, found.n, std::nextafter(sorted[k - 1], -kLowest));
        i64 left = 0;
        for (i64 i = 0; i < found.n; ++i)
            if (scores[i] > sorted[k - 1] || (scores[i] == sorted[k - 1] && n_equal-- > 0)) {
                found.scores[left] = scores[i];
                found.latents[left++] = found.latents[i];
            }
        found.n = left;
    }
    while (found.n > k) found.drop_smallest();
    i64 n_taken = found.n;
    for (i64 i = 0; i < n_taken; ++i) values[i] = found.scores[i], latents[i] = found.latents[i];
    for (i64 next = 0; n_taken < k && next < d_sae; ++next)
        if (std::find(latents, latents + n_taken, next) == latents + n_taken) {
            values[n_taken] = std::numeric_limits<float>::quiet_NaN();
            latents[n_taken++] = next;
        }
}

#if STRATA_INT8

// ---------------------------------------------------------------------------------------------- scores in int8

constexpr i64 kLatents = 48;      // a panel: three vectors of 16 latents
constexpr i64 kRows = 8;          // rows of one micro-kernel
constexpr i64 kAhead = 8;         // fours of the encoder that are fetched before they are used
constexpr i64 kBlockRows = 48;    // rows whose scores are in the second-level cache at once
constexpr i64 kSlab = 48 * 64;    // latents, likewise

inline i64 padded(i64 n, i64 to) { return (n + to - 1) / to * to; }

inline float largest(const float* row, i64 d) {
    float found = 0;
#pragma omp simd reduction(max : found)
    for (i64 i = 0; i < d; ++i) found = std::max(found, std::fabs(row[i]));
    return found;
}

// The encoder in 8 bits: of each latent a scale, and 128 + round(weight/scale), four numbers of 16 latents side by side.
struct Encoder {
    i64 d, h, d4, n_panels;
    std::unique_ptr<uint8_t[]> memory;
    uint8_t* packed;
    vector<float> scale, bias;
    float mean_norm2 = 0, mean_scale2 = 0;

    Encoder(const float* W, const float* b, i64 d_, i64 h_, int n_threads)
        : d(d_), h(h_), d4(padded(d_, 4) / 4), n_panels(padded(h_, kLatents) / kLatents) {
        const i64 h_padded = n_panels * kLatents;
        memory.reset(new uint8_t[h_padded * d4 * 4 + 64]);
        packed = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) & ~uintptr_t(63));
        scale.assign(h_padded, 0.f);
        bias.assign(h_padded, kLowest);
        std::copy(b, b + h, bias.begin());
        vector<float> norm2(h_padded, 0.f);
#pragma omp parallel for num_threads(n_threads) schedule(static)
        for (i64 group = 0; group < h_padded / 16; ++group) pack(W, group, norm2.data());
        double norms = 0, scales = 0;
        for (i64 j = 0; j < h; ++j) {
            norms += norm2[j];
            scales += double(scale[j]) * scale[j];
        }
        mean_norm2 = float(norms / h);
        mean_scale2 = float(scales / h);
    }

    // Sixteen latents: quantised row by row, then transposed in units of four bytes.
    void pack(const float* W, i64 group, float* norm2) {
        alignas(64) int32_t lines[16][16];
        uint8_t* out = packed + group * d4 * 64;
        float inverse[16];
        for (i64 l = 0; l < 16; ++l) {
            const i64 j = group * 16 + l;
            const float top = j < h ? largest(W + j * d, d) : 0.f;
            scale[j] = top / 127.f;
            inverse[l] = top > 0 ? 127.f / top : 0.f;
            if (j < h) norm2[j] = dot(W + j * d, W + j * d, d);
        }
        const __m512i offset = _mm512_set1_epi8(char(128));
        for (i64 start = 0; start < d4; start += 16) {
            for (i64 l = 0; l < 16; ++l) {
                const i64 j = group * 16 + l;
                __m128i bytes[4];
                for (i64 quarter = 0; quarter < 4; ++quarter) {
                    const i64 from = 4 * start + 16 * quarter;
                    const i64 left = j < h ? std::max<i64>(0, std::min<i64>(16, d - from)) : 0;
                    const __mmask16 mask = __mmask16((1u << left) - 1);
                    const __m512 w = _mm512_maskz_loadu_ps(mask, left ? W + j * d + from : W);
                    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(w, _mm512_set1_ps(inverse[l])));
                    bytes[quarter] = _mm512_cvtsepi32_epi8(q);
                }
                __m512i line = _mm512_inserti64x4(
                    _mm512_castsi256_si512(_mm256_set_m128i(bytes[1], bytes[0])), _mm256_set_m128i(bytes[3], bytes[2]), 1);
                _mm512_store_si512(lines[l], _mm512_add_epi8(line, offset));
            }
            for (i64 four = 0; four < std::min<i64>(16, d4 - start); ++four) {
                alignas(64) int32_t column[16];
                for (i64 l = 0; l < 16; ++l) column[l] = lines[l][four];
                _mm512_store_si512(out + (start + four) * 64, _mm512_load_si512(column));
            }
        }
    }
};

// Rows in 8 bits, each with its scale; as many as a block holds, filled up with zeros. Four numbers of eight rows lie
// side by side, in the order in which the products want them.
struct Rows {
    i64 d4;
    vector<int8_t> numbers;
    alignas(64) float scale[kBlockRows];
    alignas(64) int32_t correction[kBlockRows];  // -128 times the sum of the row's numbers
    float error[kBlockRows];                     // standard deviation of a score's error

    explicit Rows(i64 d4_) : d4(d4_), numbers(kBlockRows * d4_ * 4 + 64) {}

    void take(const float* z, i64 n, const Encoder& encoder) {
        const i64 d = encoder.d;
        std::memset(numbers.data(), 0, kBlockRows * d4 * 4);
        for (i64 r = 0; r < kBlockRows; ++r) {
            scale[r] = 0, correction[r] = 0, error[r] = 0;
            if (r >= n) continue;
            const float* row = z + r * d;
            int32_t* out = reinterpret_cast<int32_t*>(&numbers[r / kRows * kRows * d4 * 4]) + r % kRows;
            const float top = largest(row, d);
            scale[r] = top / 127.f;
            const __m512 inverse = _mm512_set1_ps(top > 0 ? 127.f / top : 0.f);
            __m512i sum = _mm512_setzero_si512();
            for (i64 i = 0; i < d; i += 16) {
                const __mmask16 mask = d - i >= 16 ? __mmask16(0xffff) : __mmask16((1u << (d - i)) - 1);
                const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(mask, row + i), inverse));
                sum = _mm512_add_epi32(sum, q);
                alignas(16) int32_t fours[4];
                _mm_store_si128(reinterpret_cast<__m128i*>(fours), _mm512_cvtsepi32_epi8(q));
                for (i64 f = 0; f < std::min<i64>(4, d4 - i / 4); ++f) out[(i / 4 + f) * kRows] = fours[f];
            }
            correction[r] = -128 * _mm512_reduce_add_epi32(sum);
            const float norm2 = dot(row, row, d);
            error[r] = std::sqrt((scale[r] * scale[r] * encoder.mean_norm2 + norm2 * encoder.mean_scale2) / 12.f);
        }
    }
};

// Scores of eight rows and three vectors of latents, out of the products of their bytes. The 24 sums stay in registers;
// with intrinsics, or with arrays and loops, GCC 12 keeps them in memory (four times as slow): hence macros and asm.
#define FOR_ROWS(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define START(r) __m512i a##r = _mm512_set1_epi32(start[r]), b##r = a##r, c##r = a##r;
#define ADD_PRODUCTS(sum, w, x) asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
#define ADD(r)                                        \
    {                                                 \
        const __m512i four = _mm512_set1_epi32(x[r]); \
        ADD_PRODUCTS(a##r, wa, four)                  \
        ADD_PRODUCTS(b##r, wb, four)                  \
        ADD_PRODUCTS(c##r, wc, four)                  \
    }
#define WRITE(r) write(a##r, r, 0), write(b##r, r, 1), write(c##r, r, 2);

__attribute__((noinline)) void score_panel(const Encoder& encoder, const Rows& rows, i64 panel, i64 first_row,
                                           float* tile, i64 stride) {
    const i64 d4 = encoder.d4;
    const uint8_t* w = encoder.packed + panel * 3 * d4 * 64;
    const int32_t* x = reinterpret_cast<const int32_t*>(&rows.numbers[first_row * d4 * 4]);
    const int32_t* start = rows.correction + first_row;
    FOR_ROWS(START)
    for (i64 i = 0; i < d4; ++i, w += 64, x += kRows) {
        __builtin_prefetch(w + kAhead * 64);
        __builtin_prefetch(w + (d4 + kAhead) * 64);
        __builtin_prefetch(w + (2 * d4 + kAhead) * 64);
        const __m512i wa = _mm512_load_si512(w), wb = _mm512_load_si512(w + d4 * 64),
                      wc = _mm512_load_si512(w + 2 * d4 * 64);
        FOR_ROWS(ADD)
    }
    const float *scale = &encoder.scale[panel * kLatents], *bias = &encoder.bias[panel * kLatents];
    const float* row_scale = rows.scale + first_row;
    const auto write = [&](__m512i sums, int row, i64 vector) {
        const __m512 factor = _mm512_mul_ps(_mm512_loadu_ps(scale + 16 * vector), _mm512_set1_ps(row_scale[row]));
        const __m512 score = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), factor, _mm512_loadu_ps(bias + 16 * vector));
        _mm512_storeu_ps(tile + row * stride + 16 * vector, score);
    };
    FOR_ROWS(WRITE)
}

#undef FOR_ROWS
#undef START
#undef ADD_PRODUCTS
#undef ADD
#undef WRITE

// Scores [kBlockRows, n_panels·48] of a block of rows and a slab of latents.
void score_slab(const Encoder& encoder, const Rows& rows, i64 n_rows, i64 first_panel, i64 n_panels, float* tile) {
    for (i64 p = 0; p < n_panels; ++p)
        for (i64 r = 0; r < n_rows; r += kRows)
            score_panel(encoder, rows, first_panel + p, r, tile + r * n_panels * kLatents + p * kLatents,
                        n_panels * kLatents);
}

// Calls visit(block's first row, rows of it, quantised rows, slab's first latent, latents of it, tile) for all of them.
template <typename Visit>
void for_slabs(const float* z, i64 first, i64 last, const Encoder& encoder, Rows& rows, vector<float>& tile, Visit visit) {
    for (i64 start = first; start < last; start += kBlockRows) {
        const i64 n = std::min(kBlockRows, last - start);
        rows.take(z + start * encoder.d, n, encoder);
        const i64 slabs = padded(encoder.n_panels * kLatents, kSlab) / kSlab;
        const i64 each = padded(encoder.n_panels, slabs) / slabs;
        for (i64 panel = 0; panel < encoder.n_panels; panel += each) {
            const i64 n_panels = std::min(each, encoder.n_panels - panel);
            score_slab(encoder, rows, n, panel, n_panels, tile.data());
            visit(start, n, rows, panel * kLatents, n_panels * kLatents, tile.data());
        }
    }
}

struct TopkWorkspace {
    Rows rows;
    vector<float> tile;
    vector<Candidates> found;
    Maxima maxima;

    explicit TopkWorkspace(i64 d4) : rows(d4), tile(kBlockRows * kSlab), found(kBlockRows) {}
};

constexpr float kMargin = 4.f;  // standard deviations of a score's error by which a candidate may miss the k-th score

void topk_block(const float* z, const float* W, const float* bias, const Encoder& encoder, i64 start, i64 n_rows, i64 k,
                float* values, i64* latents, TopkWorkspace& own) {
    const i64 d = encoder.d, h = encoder.h;
    for (auto& one : own.found) one.n = 0;
    for_slabs(z, start, start + n_rows, encoder, own.rows, own.tile,
              [&](i64, i64 n, const Rows& rows, i64 first, i64 width, const float* tile) {
                  for (i64 r = 0; r < n; ++r) {
                      Candidates& found = own.found[r];
                      const i64 n_real = std::min(width, h - first);
                      const i64 m = own.maxima.add(found, own.maxima.take(tile + r * width, n_real, k));
                      const float floor = floor_of(own.maxima.of.data(), m, k) - kMargin * rows.error[r];
                      if (found.n) found.drop_below(floor);
                      own.maxima.append_to(found, tile + r * width, n_real, int32_t(first), floor);
                  }
              });
    for (i64 r = 0; r < n_rows; ++r) {
        Candidates& found = own.found[r];
        found.drop_below(floor_of(found.scores.data(), found.n, k) - kMargin * own.rows.error[r]);
        const float* row = z + (start + r) * d;
        for (i64 c = 0; c < std::min<i64>(4, found.n); ++c) prefetch(W + found.latents[c] * d, d);
        for (i64 c = 0; c < found.n; ++c) {
            if (c + 4 < found.n) prefetch(W + found.latents[c + 4] * d, d);
            found.scores[c] = dot(row, W + found.latents[c] * d, d) + bias[found.latents[c]];
        }
        take_largest(found, k, h, values + (start + r) * k, latents + (start + r) * k);
    }
}

struct Found {
    vector<float> values;
    vector<i64> rows, latents;
};

void above_range(const float* z, const float* W, const float* bias, const float* floor, bool per_latent,
                 const Encoder& encoder, i64 first_row, i64 last_row, Found& out) {
    const i64 d = encoder.d, h = encoder.h;
    TopkWorkspace own(encoder.d4);
    auto finish = [&](i64 start, i64 n) {
        for (i64 r = 0; r < n; ++r) {
            Candidates& found = own.found[r];
            for (i64 c = 0; c < found.n; ++c) {
                if (c + 4 < found.n) prefetch(W + found.latents[c + 4] * d, d);
                const i64 latent = found.latents[c];
                const float value = dot(z + (start + r) * d, W + latent * d, d) + bias[latent];
                if (value > floor[per_latent ? latent : 0]) {
                    out.values.push_back(value);
                    out.rows.push_back(start + r);
                    out.latents.push_back(latent);
                }
            }
            found.n = 0;
        }
    };
    for (i64 start = first_row; start < last_row; start += kBlockRows) {
        const i64 n_rows = std::min(kBlockRows, last_row - start);
        for_slabs(z, start, start + n_rows, encoder, own.rows, own.tile,
                  [&](i64, i64 n, const Rows& rows, i64 first, i64 width, float* tile) {
                      for (i64 r = 0; r < n; ++r) {
                          float* row = tile + r * width;
                          const i64 n_real = std::min(width, h - first);
                          if (per_latent)
#pragma omp simd
                              for (i64 i = 0; i < n_real; ++i) row[i] -= floor[first + i];
                          const float limit = (per_latent ? 0.f : floor[0]) - kMargin * rows.error[r];
                          own.found[r].append(row, n_real, int32_t(first), limit);
                      }
                  });
        finish(start, n_rows);
    }
}

#endif  // STRATA_INT8

}  // namespace

extern "C" {

int strata_has_int8() { return STRATA_INT8; }

#if STRATA_INT8

void strata_topk_int8(const float* z, const float* W, const float* bias, i64 n, i64 d, i64 h, i64 k, float* values,
                      i64* latents, int n_threads) {
    const Encoder encoder(W, bias, d, h, n_threads);
#pragma omp parallel num_threads(n_threads)
    {
        TopkWorkspace own(encoder.d4);
#pragma omp for schedule(dynamic)
        for (i64 start = 0; start < n; start += kBlockRows)
            topk_block(z, W, bias, encoder, start, std::min(kBlockRows, n - start), k, values, latents, own);
    }
}

// All scores in int8, summed up so that none can be left out: the product alone, for measurements.
float strata_product_int8(const float* z, const float* W, const float* bias, i64 n, i64 d, i64 h, int n_threads) {
    const Encoder encoder(W, bias, d, h, n_threads);
    float total = 0;
#pragma omp parallel num_threads(n_threads) reduction(+ : total)
    {
        TopkWorkspace own(encoder.d4);
#pragma omp for schedule(dynamic)
        for (i64 start = 0; start < n; start += kBlockRows)
            for_slabs(z, start, std::min(n, start + kBlockRows), encoder, own.rows, own.tile,
                      [&](i64, i64, const Rows&, i64, i64, const float* tile) { total += tile[0]; });
    }
    return total;
}

// Entries above a floor: a handle to a list for each thread; strata_above_take copies and frees it.
void* strata_above_int8(const float* z, const float* W, const float* bias, const float* floor, int per_latent, i64 n,
                        i64 d, i64 h, int n_threads, i64* n_found) {
    const Encoder encoder(W, bias, d, h, n_threads);
    auto* lists = new vector<Found>(n_threads);
    const i64 each = padded(padded(n, n_threads) / n_threads, kBlockRows);
#pragma omp parallel for num_threads(n_threads) schedule(static, 1)
    for (int t = 0; t < n_threads; ++t)
        above_range(z, W, bias, floor, per_latent, encoder, std::min(n, t * each), std::min(n, (t + 1) * each),
                    (*lists)[t]);
    *n_found = 0;
    for (const auto& one : *lists) *n_found += i64(one.values.size());
    return lists;
}

void strata_above_take(void* handle, float* values, i64* rows, i64* latents) {
    auto* lists = static_cast<vector<Found>*>(handle);
    for (const auto& one : *lists) {
        values = std::copy(one.values.begin(), one.values.end(), values);
        rows = std::copy(one.rows.begin(), one.rows.end(), rows);
        latents = std::copy(one.latents.begin(), one.latents.end(), latents);
    }
    delete lists;
}

#endif

// The k largest of every row of scores that lie in memory.
void strata_topk_scores(const float* scores, i64 n, i64 h, i64 k, float* values, i64* latents, int n_threads) {
#pragma omp parallel num_threads(n_threads)
    {
        Maxima maxima;
        Candidates found;
#pragma omp for schedule(static)
        for (i64 r = 0; r < n; ++r) {
            const float* row = scores + r * h;
            found.n = 0;
            const i64 m = maxima.take(row, h, k);
            maxima.append_to(found, row, h, 0, floor_of(maxima.of.data(), m, k));
            take_largest(found, k, h, values + r * k, latents + r * k);
        }
    }
}

void strata_decode(const float* values, const i64* latents, const i64* starts, const float* W, i64 n_rows,
                   i64 n_entries, i64 d, float* out, int n_threads) {
#pragma omp parallel for num_threads(n_threads) schedule(static)
    for (i64 r = 0; r < n_rows; ++r) {
        const i64 end = r + 1 < n_rows ? starts[r + 1] : n_entries;
        float* row = out + r * d;
        std::memset(row, 0, d * sizeof(float));
        for (i64 e = starts[r]; e < end; ++e) {
            if (e + 4 < n_entries) prefetch(W + latents[e + 4] * d, d);
            add_scaled(row, values[e], W + latents[e] * d, d);
        }
    }
}

void strata_residual(const float* values, const i64* latents, const i64* starts, const float* W, const float* target,
                     const float* keep, i64 n_rows, i64 n_entries, i64 d, float* left, float* dots, int n_threads) {
#pragma omp parallel for num_threads(n_threads) schedule(static)
    for (i64 r = 0; r < n_rows; ++r) {
        const i64 begin = starts[r], end = r + 1 < n_rows ? starts[r + 1] : n_entries;
        float* row = left + r * d;
        std::memset(row, 0, d * sizeof(float));
        for (i64 e = begin; e < end; ++e) {
            if (e + 4 < n_entries) prefetch(W + latents[e + 4] * d, d);
            add_scaled(row, values[e], W + latents[e] * d, d);
        }
        const float counts = keep[r];
        const float* wanted = target + r * d;
#pragma omp simd
        for (i64 i = 0; i < d; ++i) row[i] = (wanted[i] - row[i]) * counts;
        for (i64 e = begin; e < end; ++e) dots[e] = dot(row, W + latents[e] * d, d);
    }
}

void strata_dot(const float* a, const i64* bags, const float* W, const i64* latents, i64 n_entries, i64 d, float* out,
                int n_threads) {
#pragma omp parallel for num_threads(n_threads) schedule(static)
    for (i64 e = 0; e < n_entries; ++e) {
        if (e + 4 < n_entries) prefetch(W + latents[e + 4] * d, d);
        out[e] = dot(a + bags[e] * d, W + latents[e] * d, d);
    }
}

// Counting sort: starts [h + 1], order [n]; entries of one latent stay in the list's order.
void strata_by_latent(const i64* latents, i64 n, i64 h, i64* order, i64* starts) {
    std::memset(starts, 0, (h + 1) * sizeof(i64));
    for (i64 e = 0; e < n; ++e) ++starts[latents[e] + 1];
    for (i64 j = 0; j < h; ++j) starts[j + 1] += starts[j];
    vector<i64> next(starts, starts + h);
    for (i64 e = 0; e < n; ++e) order[next[latents[e]]++] = e;
}

static inline void sum_rows(float* g, const i64* rows, const float* amounts, i64 begin, i64 end, const float* inputs,
                            i64 d) {
    std::memset(g, 0, d * sizeof(float));
    for (i64 e = begin; e < end; ++e) {
        if (e + 4 < end) prefetch(inputs + rows[e + 4] * d, d);
        add_scaled(g, amounts[e], inputs + rows[e] * d, d);
    }
}

void strata_row_sums(const i64* rows, const float* amounts, const i64* starts, const float* inputs, i64 h, i64 d,
                     float* out, int n_threads) {
#pragma omp parallel for num_threads(n_threads) schedule(dynamic, 32)
    for (i64 j = 0; j < h; ++j) sum_rows(out + j * d, rows, amounts, starts[j], starts[j + 1], inputs, d);
}

void strata_adam_rows(float* weight, float* first, float* second, int32_t* last_step, const i64* rows,
                      const float* amounts, const i64* starts, const float* inputs, const float* extra,
                      const int32_t* extra_of, i64 h, i64 d, float rate, int step, int unit_rows, float beta1,
                      float beta2, float eps, int n_threads) {
    const float share1 = 1.f - float(std::pow(double(beta1), step)), share2 = 1.f - float(std::pow(double(beta2), step));
    const float by1 = rate / share1, by2 = 1.f / share2;
#pragma omp parallel num_threads(n_threads)
    {
        vector<float> gradient(d);
        float* g = gradient.data();
#pragma omp for schedule(dynamic, 16)
        for (i64 j = 0; j < h; ++j) {
            const i64 begin = starts[j], end = starts[j + 1];
            if (begin == end && extra_of[j] < 0) continue;
            float *w = weight + j * d, *m = first + j * d, *v = second + j * d;
            prefetch(w, d), prefetch(m, d), prefetch(v, d);
            sum_rows(g, rows, amounts, begin, end, inputs, d);
            if (extra_of[j] >= 0) add_scaled(g, 1.f, extra + i64(extra_of[j]) * d, d);
            if (unit_rows) add_scaled(g, -dot(g, w, d), w, d);
            const int passed = step - last_step[j];
            const float keep1 = passed == 1 ? beta1 : std::pow(beta1, float(passed));
            const float keep2 = passed == 1 ? beta2 : std::pow(beta2, float(passed));
#pragma omp simd
            for (i64 i = 0; i < d; ++i) {
                m[i] = keep1 * m[i] + (1.f - beta1) * g[i];
                v[i] = keep2 * v[i] + (1.f - beta2) * g[i] * g[i];
                w[i] -= by1 * m[i] / (std::sqrt(by2 * v[i]) + eps);
            }
            last_step[j] = step;
            if (unit_rows) {
                const float norm = std::sqrt(dot(w, w, d));
                if (norm == 0) {
                    w[j % d] = 1.f;
                } else {
                    const float inverse = 1.f / norm;
#pragma omp simd
                    for (i64 i = 0; i < d; ++i) w[i] *= inverse;
                }
            }
        }
    }
}

}  // extern "C"
