/* Rate at which this machine's memory is read: read_rate THREADS MEGABYTES PASSES

   Prints gigabytes (1e9 bytes) a second, the median over the passes. Each thread sums its own share of a buffer
   on huge pages, where the system gives them, with eight vector accumulators, so that no addition waits for
   another; the buffer must be several times larger than the last cache. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { STREAMS = 8, AHEAD = 256, MOST_THREADS = 256 }; /* AHEAD: vectors, 16 KiB */
typedef uint64_t vector __attribute__((vector_size(64)));

struct share {
    const vector *start;
    size_t vectors;
    uint64_t sum;
};

static void *read_share(void *argument) {
    struct share *share = argument;
    vector sums[STREAMS] = {{0}};
    for (size_t i = 0; i < share->vectors; i += STREAMS) {
        for (int k = 0; k < STREAMS; k++) {
            __builtin_prefetch(share->start + i + k + AHEAD);
            sums[k] += share->start[i + k];
        }
    }
    for (int k = 0; k < STREAMS; k++)
        for (int lane = 0; lane < 8; lane++) share->sum += sums[k][lane];
    return NULL;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static double pass(struct share *shares, int threads) {
    pthread_t others[MOST_THREADS];
    double start = seconds();
    for (int t = 1; t < threads; t++)
        if (pthread_create(&others[t], NULL, read_share, &shares[t])) exit(1);
    read_share(&shares[0]);
    for (int t = 1; t < threads; t++) pthread_join(others[t], NULL);
    return seconds() - start;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int count, char **words) {
    int threads = count == 4 ? atoi(words[1]) : 0, passes = count == 4 ? atoi(words[3]) : 0;
    size_t bytes = count == 4 ? (size_t)atol(words[2]) * 1000000 : 0;
    size_t vectors = bytes / sizeof(vector) / (threads > 0 ? threads : 1) / STREAMS * STREAMS;
    if (threads < 1 || threads > MOST_THREADS || passes < 1 || passes > 10000 || vectors == 0) {
        fputs("usage: read_rate THREADS MEGABYTES PASSES\n", stderr);
        return 2;
    }
    /* One huge page more, so that the start can be moved to a boundary of them. */
    size_t huge = 2 << 20;
    char *memory = mmap(NULL, bytes + huge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 1;
    memory += (huge - (uintptr_t)memory % huge) % huge;
    madvise(memory, bytes, MADV_HUGEPAGE);
    memset(memory, 1, bytes);
    struct share shares[MOST_THREADS] = {{0}};
    for (int t = 0; t < threads; t++)
        shares[t] = (struct share){(const vector *)memory + t * vectors, vectors, 0};
    double *rates = malloc(passes * sizeof *rates);
    for (int i = 0; i < passes; i++)
        rates[i] = vectors * sizeof(vector) * threads / pass(shares, threads) / 1e9;
    qsort(rates, passes, sizeof *rates, ascending);
    uint64_t sum = 0;
    for (int t = 0; t < threads; t++) sum += shares[t].sum;
    if (sum == 0) return 1; /* Uses the sums: reading must not be optimised away. */
    printf("%.2f\n", rates[passes / 2]);
    return 0;
}
