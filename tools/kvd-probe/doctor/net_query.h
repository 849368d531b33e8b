// What network drivers tell by ioctl and netlink, without rights: the forms are those of ethtool(8)
// and dcb(8). Empty text: the driver does not tell.
#pragma once

#include <string>

namespace kvd::doctor {

// "tcp-segmentation-offload: on" and the like (ETHTOOL_GTSO, GGSO, GGRO).
std::string offloads_of(const std::string& device);
// "  rx_packets: 12" (ETHTOOL_GSTATS).
std::string statistics_of(const std::string& device);
// "prio-pfc 0:off 1:off ... 7:off" (RTM_GETDCB, DCB_CMD_IEEE_GET).
std::string flow_control_of(const std::string& device);

}  // namespace kvd::doctor
