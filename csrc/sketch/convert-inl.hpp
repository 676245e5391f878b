// Elements of any ElementType as T, exactly. Included inside a body after lanes-inl.hpp.

template <class T, class S>
EF_INLINE void convert_from(const char* source, int64_t stride, int64_t count, T* __restrict to) {
    if (stride == static_cast<int64_t>(sizeof(S)))
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(element<S>(source + i * sizeof(S)));
    else
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(element<S>(source + i * stride));
}

EF_INLINE void convert_half(const char* source, int64_t stride, int64_t count, float* __restrict to) {
    int64_t i = 0;
    if (stride == 2) {
#if defined(EF_TARGET_AVX512)
        for (; i + 16 <= count; i += 16)
            _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + 2 * i))));
#elif defined(EF_TARGET_AVX2)
        for (; i + 8 <= count; i += 8)
            _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + 2 * i))));
#elif defined(EF_TARGET_NEON)
        for (; i + 4 <= count; i += 4)
            vst1q_f32(to + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(source + 2 * i)))));
#endif
    }
    for (; i < count; ++i) to[i] = static_cast<float>(half_to_double(element<uint16_t>(source + i * stride)));
}

static void convert(ElementType type, const char* source, int64_t stride, int64_t count, float* to) {
    switch (type) {
        case ElementType::f16: return convert_half(source, stride, count, to);
        case ElementType::i8: return convert_from<float, int8_t>(source, stride, count, to);
        case ElementType::u8: return convert_from<float, uint8_t>(source, stride, count, to);
        case ElementType::i16: return convert_from<float, int16_t>(source, stride, count, to);
        case ElementType::u16: return convert_from<float, uint16_t>(source, stride, count, to);
        default: return convert_from<float, float>(source, stride, count, to);
    }
}
static void convert(ElementType type, const char* source, int64_t stride, int64_t count, double* to) {
    switch (type) {
        case ElementType::i32: return convert_from<double, int32_t>(source, stride, count, to);
        case ElementType::u32: return convert_from<double, uint32_t>(source, stride, count, to);
        case ElementType::i64: return convert_from<double, int64_t>(source, stride, count, to);
        case ElementType::u64: return convert_from<double, uint64_t>(source, stride, count, to);
        default: return convert_from<double, double>(source, stride, count, to);
    }
}
