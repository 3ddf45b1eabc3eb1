/* Links with a delay and a rate between network namespaces, for kernels without netem.
 *
 *   frame_relay DELAY_NS NS_PER_BYTE SWITCH NAMESPACE[,DELAY_NS,NS_PER_BYTE]...
 *
 * In the i-th NAMESPACE it makes the interface `net`, in the namespace SWITCH the interface `port<i>`, both TAPs, and hands
 * each frame that leaves one to the other: after the time that its bytes take at the link's rate, behind those before
 * it, and DELAY_NS more. A queue holds some 2000 frames; what comes beyond is lost, as in a switch. Prints "ready" when
 * all interfaces are there. Needs root.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#ifndef FRAME
#define FRAME 2048
#endif
enum { SLOTS = (4 << 20) / FRAME, BURST = 64 };

typedef struct {
    int64_t due;
    ssize_t length;
    char bytes[FRAME];
} Frame;

typedef struct {
    int from, to;
    int64_t delay;
    double ns_a_byte;
    int64_t free_at; /* when the last frame accepted has left the sender */
    unsigned first, count;
    Frame *frames;
} Way;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void die(const char *what) {
    fprintf(stderr, "frame_relay: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int tap(const char *space, const char *name) {
    char path[256];
    snprintf(path, sizeof path, "/run/netns/%s", space);
    int place = open(path, O_RDONLY);
    if (place < 0 || setns(place, CLONE_NEWNET)) die(path);
    close(place);
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (device < 0) die("/dev/net/tun");
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    snprintf(request.ifr_name, IFNAMSIZ, "%s", name);
    if (ioctl(device, TUNSETIFF, &request)) die(name);
    return device;
}

/* Send what is due; when the next frame is, or INT64_MAX. */
static int64_t send_due(Way *way, int64_t at) {
    while (way->count && way->frames[way->first].due <= at) {
        Frame *frame = &way->frames[way->first];
        if (write(way->to, frame->bytes, frame->length) < 0 && errno == EBADF) die("write");
        way->first = (way->first + 1) % SLOTS;
        way->count--;
    }
    return way->count ? way->frames[way->first].due : INT64_MAX;
}

static void take_in(Way *way) {
    char lost[FRAME];
    for (int i = 0; i < BURST; i++) {
        Frame *frame = &way->frames[(way->first + way->count) % SLOTS];
        int full = way->count == SLOTS;
        ssize_t length = read(way->from, full ? lost : frame->bytes, FRAME);
        if (length <= 0) return;
        if (full) continue;
        int64_t at = now();
        way->free_at = (at > way->free_at ? at : way->free_at) + (int64_t)(length * way->ns_a_byte);
        frame->due = way->free_at + way->delay;
        frame->length = length;
        way->count++;
    }
}

int main(int count, char **words) {
    if (count < 5) {
        fprintf(stderr, "usage: frame_relay DELAY_NS NS_PER_BYTE SWITCH NAMESPACE...\n");
        return 2;
    }
    int ways = 2 * (count - 4);
    Way *all = calloc(ways, sizeof *all);
    struct pollfd *polled = calloc(ways, sizeof *polled);
    for (int i = 0; i < ways / 2; i++) {
        char port[IFNAMSIZ];
        snprintf(port, sizeof port, "port%d", i);
        char *own = strchr(words[4 + i], ','), *rate = own ? strchr(own + 1, ',') : words[2];
        int64_t delay = atoll(own ? own + 1 : words[1]);
        double ns_a_byte = atof(own && rate ? rate + 1 : words[2]);
        if (own) *own = 0;
        int outer = tap(words[4 + i], "net"), inner = tap(words[3], port);
        all[2 * i] = (Way){.from = outer, .to = inner, .delay = delay, .ns_a_byte = ns_a_byte};
        all[2 * i + 1] = (Way){.from = inner, .to = outer, .delay = delay, .ns_a_byte = ns_a_byte};
    }
    for (int i = 0; i < ways; i++) {
        all[i].frames = malloc(SLOTS * sizeof(Frame));
        polled[i] = (struct pollfd){.fd = all[i].from, .events = POLLIN};
    }
    prctl(PR_SET_TIMERSLACK, 1000UL, 0, 0, 0);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        int64_t at = now(), next = INT64_MAX;
        for (int i = 0; i < ways; i++) {
            int64_t due = send_due(&all[i], at);
            next = due < next ? due : next;
        }
        int64_t left = next == INT64_MAX ? 0 : next - now();
        struct timespec wait = {left > 0 ? left / 1000000000 : 0, left > 0 ? left % 1000000000 : 0};
        if (ppoll(polled, ways, next == INT64_MAX ? NULL : &wait, NULL) <= 0) continue;
        for (int i = 0; i < ways; i++)
            if (polled[i].revents & POLLIN) take_in(&all[i]);
    }
}
