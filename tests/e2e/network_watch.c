/* Preloaded into every process of a run: writes down and refuses whatever would leave this machine.
 *
 * NETWORK_WATCH names the file. A line each: "loaded PROGRAM", "lookup NAME", "send FAMILY ADDRESS".
 * Loopback, Unix sockets and names that are numbers of this machine pass; all else fails as if no network were there. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define NEXT(name) __typeof__(&name) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static void note(const char *what, const char *which) {
    int saved = errno, file = open(getenv("NETWORK_WATCH"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    dprintf(file, "%s %s\n", what, which);
    close(file);
    errno = saved;
}

__attribute__((constructor)) static void loaded(void) { note("loaded", program_invocation_short_name); }

static int is_ours(const struct sockaddr *to) {
    if (to == NULL || (to->sa_family != AF_INET && to->sa_family != AF_INET6)) return 1;
    if (to->sa_family == AF_INET) {
        in_addr_t address = ntohl(((const struct sockaddr_in *)to)->sin_addr.s_addr);
        return address >> 24 == 127 || address == INADDR_ANY;
    }
    const struct in6_addr *address = &((const struct sockaddr_in6 *)to)->sin6_addr;
    if (IN6_IS_ADDR_V4MAPPED(address)) return address->s6_addr[12] == 127;
    return IN6_IS_ADDR_LOOPBACK(address) || IN6_IS_ADDR_UNSPECIFIED(address);
}

static int refused(const struct sockaddr *to) {
    char text[INET6_ADDRSTRLEN + 16] = "4 ";
    if (is_ours(to)) return 0;
    const void *address = to->sa_family == AF_INET ? (const void *)&((const struct sockaddr_in *)to)->sin_addr
                                                   : (const void *)&((const struct sockaddr_in6 *)to)->sin6_addr;
    if (to->sa_family == AF_INET6) text[0] = '6';
    inet_ntop(to->sa_family, address, text + 2, INET6_ADDRSTRLEN);
    note("send", text);
    errno = ENETUNREACH;
    return 1;
}

static int is_foreign_name(const char *name) {
    struct sockaddr_in four = {.sin_family = AF_INET};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6};
    if (name == NULL || strcmp(name, "") == 0 || strcmp(name, "localhost") == 0) return 0;
    if (inet_pton(AF_INET, name, &four.sin_addr) == 1 || inet_pton(AF_INET6, name, &six.sin6_addr) == 1)
        return 0; /* nothing is asked; what is sent there is another matter */
    note("lookup", name);
    return 1;
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    NEXT(getaddrinfo);
    return is_foreign_name(name) ? EAI_AGAIN : next(name, service, hints, found);
}

struct hostent *gethostbyname(const char *name) {
    NEXT(gethostbyname);
    return is_foreign_name(name) ? NULL : next(name);
}

struct hostent *gethostbyname2(const char *name, int family) {
    NEXT(gethostbyname2);
    return is_foreign_name(name) ? NULL : next(name, family);
}

int gethostbyname_r(const char *name, struct hostent *entry, char *text, size_t size, struct hostent **found,
                    int *error) {
    NEXT(gethostbyname_r);
    if (!is_foreign_name(name)) return next(name, entry, text, size, found, error);
    *found = NULL;
    *error = TRY_AGAIN;
    return EAGAIN;
}

int connect(int socket, const struct sockaddr *to, socklen_t size) {
    NEXT(connect);
    return refused(to) ? -1 : next(socket, to, size);
}

ssize_t sendto(int socket, const void *data, size_t bytes, int flags, const struct sockaddr *to, socklen_t size) {
    NEXT(sendto);
    return refused(to) ? -1 : next(socket, data, bytes, flags, to, size);
}

ssize_t sendmsg(int socket, const struct msghdr *message, int flags) {
    NEXT(sendmsg);
    return refused(message->msg_name) ? -1 : next(socket, message, flags);
}

int sendmmsg(int socket, struct mmsghdr *messages, unsigned int count, int flags) {
    NEXT(sendmmsg);
    for (unsigned int i = 0; i < count; i++)
        if (refused(messages[i].msg_hdr.msg_name)) return -1;
    return next(socket, messages, count, flags);
}
