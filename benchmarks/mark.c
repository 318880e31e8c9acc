/* A job that notes the time of its first instruction: mark FILE NAME [SECONDS TO SLEEP]. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct timespec now;
    char line[256];
    clock_gettime(CLOCK_REALTIME, &now);
    if (argc < 3) return 2;
    int length = snprintf(line, sizeof line, "%lld %s\n", (long long)now.tv_sec * 1000000000LL + now.tv_nsec, argv[2]);
    int file = open(argv[1], O_WRONLY | O_APPEND | O_CREAT, 0666);
    if (file < 0 || write(file, line, length) != length) return 1;
    close(file);
    if (argc > 3) usleep((useconds_t)(atof(argv[3]) * 1e6));
    return 0;
}
