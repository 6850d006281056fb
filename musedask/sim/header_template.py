"""The cards of the header of a raw exposure: keywords, constant values, comments.

Keywords, types, comments and constants are those of the header of a real exposure of 2014-12-08 that the
file ``minicube.fits`` of the package `mpdaf` keeps.  A line reads ``keyword = value / comment``; where a
type stands instead of a value, `musedask.sim.headers` works out the value; ``{}`` in a comment is the value
in sexagesimal form (that of a right ascension in hours).  Keywords are without ``HIERARCH ESO``.  What
repeats (IFUs, lamps, controllers, sensors in the cryostats) is made by functions.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from typing import Any, NamedTuple

#: lamps of the calibration unit, by number: name of the shutter, what shines (`ExposurePlan.lamp`),
#: current off and on in units of the last entry, hours used until 2014-12-08, hours used in a year
LAMPS: tuple[tuple[str, str, int, int, float, float, str], ...] = (
    ("ContB", "continuum", 3, 63, 1191, 400, "[10-1 A]"),
    ("ContR", "continuum", 3, 63, 1175, 400, "[10-1 A]"),
    ("Ne", "Ne", 23, 100, 427, 150, "[10-1 mA]"),
    ("Xe", "Xe", 20, 100, 1016, 350, "[10-1 mA]"),
    ("HgCd", "HgCd", 24, 60, 477, 160, "[10-2 A]"),
    ("Ne", "", 36, 60, 9, 3, "[10-2 A]"),
)
#: of the IFUs, by number: channel, and numbers of detector vessel, image slicer, preamplifier, grating
WIRING: tuple[tuple[int, str, str, str, str], ...] = (
    (2, "16", "24", "36", "08"), (6, "24", "06", "52", "03"), (8, "11", "14", "33", "14"),
    (4, "03", "05", "59", "07"), (22, "09", "11", "77", "04"), (20, "07", "01", "79", "06"),
    (17, "05", "07", "63", "13"), (16, "06", "04", "56", "05"), (19, "19", "21", "47", "32"),
    (3, "25", "10", "29", "19"), (12, "10", "03", "55", "15"), (7, "21", "09", "50", "21"),
    (21, "22", "08", "78", "18"), (5, "23", "12", "34", "20"), (15, "26", "15", "66", "22"),
    (18, "27", "16", "57", "17"), (13, "17", "13", "46", "16"), (9, "08", "19", "43", "26"),
    (14, "13", "18", "37", "23"), (10, "20", "20", "38", "24"), (11, "15", "17", "23", "27"),
    (24, "14", "22", "54", "11"), (23, "18", "23", "60", "31"), (1, "02", "02", "24", "10"),
)  # fmt: skip
#: pressure in the cryostats, by number [1e-6 mbar]
CRYOSTATS = (
    7.7, 6.6, 7.9, 6.3, 8.3, 6.0, 5.6, 6.8, 5.6, 1.8, 6.2, 45.0,
    6.7, 8.4, 5.2, 6.2, 4.4, 6.9, 5.7, 5.7, 5.0, 7.1, 6.5, 5.8,
)  # fmt: skip


class TemplateCard(NamedTuple):
    """A card of the template: a constant value, or None and the type of what is to be worked out."""

    value: Any
    type: type
    comment: str


_TYPES: dict[str, type] = {"float": float, "int": int, "str": str, "bool": bool}
#: groups of keywords, in the order of the header
GROUPS = ("DPR", "OBS", "TPL", "TEL", "INS", "DET", "DET2", "AOS", "ADA", "OCS", "SEQ")

_TEXT = """
DPR CATG = str / Observation category
DPR TECH = str / Observation technique
DPR TYPE = str / Observation type
OBS AIRM = 1.8 / Req. max. airmass
OBS AMBI FWHM = 1.4 / Req. max. seeing
OBS AMBI TRANS = '3THN' / Req. sky transparency
OBS ATM = 'NATM' / Req. Atmospheric Turbulence Model
OBS CONTAINER ID = -999 / Scheduling container ID
OBS CONTAINER TYPE = 'U' / Scheduling container type
OBS DID = 'ESO-VLT-DIC.OBS-1.12' / OBS Dictionary
OBS EXECTIME = int / Expected execution time
OBS GRP = '0' / linked blocks
OBS ID = int / Observation block ID
OBS MOON DIST = 30 / Req. min. angular dist. from moon [deg]
OBS MOON FLI = 1.0 / Req. max. fractional lunar illum.
OBS NAME = str / OB name
OBS NTPL = int / Number of templates within OB
OBS OBSERVER = 'UNKNOWN' / Observer Name
OBS PI-COI ID = 0 / ESO internal PI-COI ID
OBS PI-COI NAME = 'UNKNOWN' / PI-COI name
OBS PROG ID = str / ESO program identification
OBS START = str / OB start time
OBS STREHLRATIO = 0.0 / Req. strehl ratio
OBS TARG NAME = str / OB target name
OBS TPLNO = int / Template number within OB
OBS TWILIGHT = 0 / Req. twilight
OBS WATERVAPOUR = 0.0 / Req. water vapour
TPL DID = 'ESO-VLT-DIC.TPL-1.9' / Data dictionary for TPL
TPL EXPNO = int / Exposure number within template
TPL ID = str / Template signature ID
TPL NAME = str / Template name
TPL NEXP = int / Number of exposures within template
TPL PRESEQ = str / Sequencer script
TPL START = str / TPL start time
TPL VERSION = '$Revision: 255102 $' / Version of the template
TEL AIRM END = float / Airmass at end
TEL AIRM START = float / Airmass at start
TEL ALT = float / [deg] Alt angle at start
TEL AMBI FWHM END = float / [arcsec] Observatory Seeing queried from AS
TEL AMBI FWHM START = float / [arcsec] Observatory Seeing queried from AS
TEL AMBI PRES END = float / [hPa] Observatory ambient air pressure queried from AS
TEL AMBI PRES START = float / [hPa] Observatory ambient air pressure queried from AS
TEL AMBI RHUM = float / [%] Observatory ambient relative humidity queried from AS
TEL AMBI TAU0 = float / [s] Average coherence time
TEL AMBI TEMP = float / [deg C] Observatory ambient temperature queried from AS
TEL AMBI WINDDIR = float / [deg] Observatory ambient wind direction queried from AS
TEL AMBI WINDSP = float / [m/s] Observatory ambient wind speed queried from AS
TEL AZ = float / [deg] Az angle at start S=0,W=90
TEL CHOP ST = False / True when chopping is active
TEL DATE = '2000-01-01T00:00:00' / TCS installation date
TEL DID = 'ESO-VLT-DIC.TCS' / Data dictionary for TEL
TEL DOME STATUS = str / Dome status
TEL FOCU ID = 'NB' / Telescope focus station ID
TEL FOCU LEN = 121.561 / [m] Focal length
TEL FOCU SCALE = 1.705 / [arcsec/mm] Focal scale
TEL FOCU VALUE = float / [mm] M2 setting
TEL GEOELEV = 2648.0 / [m] Elevation above sea level
TEL GEOLAT = -24.627 / [deg] Tel geo latitute (+=North)
TEL GEOLON = -70.404 / [deg] Tel geo longitude (+=East)
TEL IA FWHM = float / [arcsec] Delivered seeing corrected by airmass
TEL IA FWHMLIN = float / Delivered seeing on IA detector (linear fit)
TEL IA FWHMLINOBS = float / Delivered seeing on IA detector (linear fit, observed)
TEL ID = 'v 261159' / TCS version number
TEL MOON DEC = float / [deg] {} DEC (J2000)
TEL MOON RA = float / [deg] {} RA (J2000)
TEL OPER = 'I, Condor' / Telescope Operator
TEL PARANG END = float / [deg] Parallactic angle at end
TEL PARANG START = float / [deg] Parallactic angle at start
TEL TARG ALPHA = float / Alpha coordinate for the target
TEL TARG COORDTYPE = 'M' / Coordinate type (M=mean A=apparent)
TEL TARG DELTA = float / Delta coordinate for the target
TEL TARG EPOCH = 2000.0 / [yr] Epoch 1950 or 2000
TEL TARG EPOCHSYSTEM = 'J' / Epoch system (J=Julian / B=Besselian)
TEL TARG EQUINOX = 2000.0 / [yr] Equinox
TEL TARG PARALLAX = 0.0 / [arcsec] Parallax
TEL TARG PMA = 0.0 / [arcsec/yr] Proper Motion Alpha
TEL TARG PMD = 0.0 / [arcsec/yr] Proper motion Delta
TEL TARG RADVEL = 0.0 / [km/s] Radial velocity
TEL TH M1 TEMP = float / [deg C] M1 superficial temperature
TEL TRAK STATUS = str / Tracking status
INS ADC1 DEC = float / [deg] Telescope declination
INS ADC1 ENC END = 190673 / [Enc] ADC encoder position at end
INS ADC1 ENC START = 190673 / [Enc] ADC encoder position at start
INS ADC1 END = -89.9999 / [deg] ADC position angle at end
INS ADC1 MODE = str / ADC mode
INS ADC1 RA = float / [deg] Telescope right ascension
INS ADC1 START = -89.9999 / [deg] ADC position angle at start
INS ADC2 DEC = float / [deg] Telescope declination
INS ADC2 ENC END = 230673 / [Enc] ADC encoder position at end
INS ADC2 ENC START = 230673 / [Enc] ADC encoder position at start
INS ADC2 END = -270.0 / [deg] ADC position angle at end
INS ADC2 MODE = str / ADC mode
INS ADC2 RA = float / [deg] Telescope right ascension
INS ADC2 START = -270.0 / [deg] ADC position angle at start
INS AMPL1 ID = 'ampl1' / Pico-amplifier ID
INS AMPL1 SWSIM = False / If T, pico-amplifier software simulated
INS AMPL2 FILTER = 'Kron_V' / Name of filter in front of PD2
INS AMPL2 ID = 'ampl2' / Pico-amplifier ID
INS AMPL2 SWSIM = False / If T, pico-amplifier software simulated
INS AO MIRR1 NAME = str / AO mirror name
INS AO OPTI1 NAME = str / AO optical function name
INS DATE = '2000-06-16' / Instrument release date (yyyy-mm-dd).
INS DID1 = 'MUSE_ICS-255006' / Data dictionary for INSi
INS DID2 = 'PRIMARY-FITS-1.2' / Data dictionary for INSi
INS DROT DEC = float / [deg] Telescope declination
INS DROT ENC END = int / [Enc] Derotator encoder position at end
INS DROT ENC START = int / [Enc] Derotator encoder position at start
INS DROT END = float / [deg] Derotator position angle at end
INS DROT MODE = str / Instrument derotator mode
INS DROT POSANG = float / [deg] Derotator position angle
INS DROT RA = float / [deg] Telescope right ascension
INS DROT START = float / [deg] Derotator position angle at start
INS ID = 'MUSE/176642' / Instrument ID
INS LAMPNUM = 6 / Number of lamps
INS MODE = str / Instrument mode used
INS OPTI1 ID = '1' / Optical function unique ID
INS OPTI1 NAME = str / Pupil Filter Wheel filter name
INS OPTI1 NO = int / Pupil Filter Wheel slot number
INS OPTI1 TYPE = 'FILTER' / Pupil Filter Wheel element type
INS OPTI2 ID = '2' / Optical function unique ID
INS OPTI2 NAME = str / Mode Switching Unit field mode
INS OPTI2 NO = int / Mode Switching Unit position
INS OPTI2 TYPE = 'FILTER' / Optical function element
INS OPTI3 ID = str / Optical function unique ID
INS OPTI3 NAME = str / Calibration Unit Pickup Mirror Status
INS OPTI3 NO = int / Calibration Pickup Element position
INS OPTI3 TYPE = str / Calibration Pickup Element type
INS OPTI4 ID = str / Optical function unique ID
INS OPTI4 NAME = str / CU Focal Plan mask Wheel mask name
INS OPTI4 NO = int / CU Focal Plan Mask Wheel slot number
INS OPTI4 TYPE = 'MASK' / Optical function element
INS PATH = '' / Optical path used
INS POS1 ENC = int / [Enc] Position function absolute position
INS POS1 POS = float / [mm] Focusing stage position
INS POS2 ENC = int / [Enc] Position function absolute position
INS POS2 POS = float / [mm] Focal Mask Alignment X position
INS POS3 ENC = int / [Enc] Position function absolute position
INS POS3 POS = float / [mm] Focal Mask Alignment Y Position
INS POS4 ENC = int / [Enc] Position function absolute position
INS POS4 POS = float / [mm] Focal Mask Alignment Z Position
INS PRES1 ID = 'ERP1' / Pressure sensor ID
INS PRES1 NAME = 'Right Enclosure Diff Pressure' / Pressure sensor name
INS PRES1 VAL = float / [mBar] Right enclosure diff. pressure
INS PRES2 ID = 'ELP1' / Pressure sensor ID
INS PRES2 NAME = 'Left Enclosure Diff Pressure' / Pressure sensor name
INS PRES2 VAL = float / [mBar] Left enclosure diff. pressure
INS SENS31 ID = 'CAW1' / Sensor ID
INS SENS31 NAME = 'Cooling Warning 1' / Sensor common name
INS SENS31 STAT = False / Cabinet cooling system warning
INS SENS32 ID = 'DOR1' / Sensor ID
INS SENS32 NAME = 'Door 1 Control' / Sensor common name
INS SENS32 STAT = False / Cabinet front door switch
INS SENS33 ID = 'DOR2' / Sensor ID
INS SENS33 NAME = 'Door 2 Control' / Sensor common name
INS SENS33 STAT = False / Cabinet rear door switch
INS SENS34 ID = 'CAL1' / Sensor ID
INS SENS34 NAME = 'Cooling Alarm 1' / Sensor common name
INS SENS34 STAT = False / Cabinet cooling system alarm
INS SENS40 ID = 'CAF2' / Sensor ID
INS SENS40 NAME = 'Flow Rate' / Sensor common name
INS SENS40 VAL = float / [l/h] Cabinet flow rate
INS SENS46 ID = 'XMAS1' / Sensor ID
INS SENS46 NAME = 'Xtra Muse Aperture Shutter' / Sensor common name
INS SENS46 STAT = False / Xtra Muse Aperture Shutter switch
INS SENS51 ID = 'ECH1' / Sensor ID
INS SENS51 NAME = 'Fore Optics Hygrometry' / Sensor common name
INS SENS51 VAL = float / [%] Fore Optics hygrometry
INS SENSOR1 ID = 'clx1' / Sensor device unique id
INS SENSOR1 NAME = 'INS LAMP1 Data' / Sensor device common name
INS SENSOR10 ID = 'hsk1' / Sensor device unique id
INS SENSOR10 NAME = 'HSK Encl/IFU env' / Sensor device common name
INS SENSOR2 ID = 'clx2' / Sensor device unique id
INS SENSOR2 NAME = 'INS LAMP2 Data' / Sensor device common name
INS SENSOR3 ID = 'clx3' / Sensor device unique id
INS SENSOR3 NAME = 'INS LAMP3 Data' / Sensor device common name
INS SENSOR4 ID = 'clx4' / Sensor device unique id
INS SENSOR4 NAME = 'INS LAMP4 Data' / Sensor device common name
INS SENSOR5 ID = 'clx5' / Sensor device unique id
INS SENSOR5 NAME = 'INS LAMP5 Data' / Sensor device common name
INS SENSOR6 ID = 'clx6' / Sensor device unique id
INS SENSOR6 NAME = 'INS LAMP6 Data' / Sensor device common name
INS SENSOR7 ID = 'dis1' / Sensor device unique id
INS SENSOR7 NAME = 'Cabinet Dig. Sensor' / Sensor device common name
INS SENSOR8 ID = 'ccc1' / Sensor device unique id
INS SENSOR8 NAME = 'Cooling controller' / Sensor device common name
INS SENSOR9 ID = 'dis2' / Sensor device unique id
INS SENSOR9 NAME = 'Safety Switches' / Sensor device common name
INS SWSIM = 'NORMAL' / Software simulation
INS TEMP1 ID = 'CAOT' / Temperature sensor ID
INS TEMP1 NAME = 'Cooling Outlet Temperature' / Temperature sensor name
INS TEMP1 VAL = float / [C] Cooling outlet temperature
INS TEMP10 ID = 'ELT2' / Temperature sensor ID
INS TEMP10 NAME = 'Left Enclosure Temperature 2' / Temperature sensor name
INS TEMP10 VAL = float / [C] Left enclosure temperature #2
INS TEMP11 ID = 'ILT1' / Temperature sensor ID
INS TEMP11 NAME = 'Left IFU Temperature 1' / Temperature sensor name
INS TEMP11 VAL = float / [C] Left IFU temperature
INS TEMP13 ID = 'ECT1' / Temperature sensor ID
INS TEMP13 NAME = 'Central Enclosure Temperature 1' / Temperature sensor name
INS TEMP13 VAL = float / [C] Central enclosure temperature #1
INS TEMP14 ID = 'ECT2' / Temperature sensor ID
INS TEMP14 NAME = 'Central Enclosure Temperature 2' / Temperature sensor name
INS TEMP14 VAL = float / [C] Central enclosure temperature #2
INS TEMP16 ID = 'EBT1' / Temperature sensor ID
INS TEMP16 NAME = 'EBB Crate Temperature' / Temperature sensor name
INS TEMP16 VAL = float / [C] EBB crate temperature
INS TEMP17 ID = 'EBT2' / Temperature sensor ID
INS TEMP17 NAME = 'Heat Exchanger Temperature' / Temperature sensor name
INS TEMP17 VAL = float / [C] Heat exchanger temperature
INS TEMP2 ID = 'CAIT' / Temperature sensor ID
INS TEMP2 NAME = 'Cooling Inlet Temperature' / Temperature sensor name
INS TEMP2 VAL = float / [C] Cooling inlet temperature
INS TEMP3 ID = 'CACT' / Temperature sensor ID
INS TEMP3 NAME = 'Cabinet Temperature' / Temperature sensor name
INS TEMP3 VAL = float / [C] Cabinet temperature
INS TEMP4 ID = 'CAAT' / Temperature sensor ID
INS TEMP4 NAME = 'Ambient Temperature' / Temperature sensor name
INS TEMP4 VAL = float / [C] Ambient temperature
INS TEMP5 ID = 'ERT1' / Temperature sensor ID
INS TEMP5 NAME = 'Right Enclosure Temperature 1' / Temperature sensor name
INS TEMP5 VAL = float / [C] Right enclosure temperature #1
INS TEMP6 ID = 'ERT2' / Temperature sensor ID
INS TEMP6 NAME = 'Right Enclosure Temperature 2' / Temperature sensor name
INS TEMP6 VAL = float / [C] Right enclosure temperature #2
INS TEMP7 ID = 'IRT1' / Temperature sensor ID
INS TEMP7 NAME = 'Right IFU Temperature 1' / Temperature sensor name
INS TEMP7 VAL = float / [C] Right IFU temperature
INS TEMP9 ID = 'ELT1' / Temperature sensor ID
INS TEMP9 NAME = 'Left Enclosure Temperature 1' / Temperature sensor name
INS TEMP9 VAL = float / [C] Left enclosure temperature #1
DET BINX = 1 / Setup binning factor along X
DET BINY = 1 / Setup binning factor along Y
DET CHIP DATE = str / [YYYY-MM-DD] Date of installation
DET CHIP ID = str / Detector chip identification
DET CHIP INDEX = int / Chip index
DET CHIP LIVE = True / Detector alive
DET CHIP NAME = str / Detector chip name
DET CHIP NX = 4096 / Physical active pixels in X
DET CHIP NY = 4112 / Physical active pixels in Y
DET CHIP OVSCX = 50 / Physical overscan pixels in X
DET CHIP OVSCY = 0 / Physical overscan pixels in Y
DET CHIP PRSCX = 50 / Physical prescan pixels in X
DET CHIP PRSCY = 0 / Physical prescan pixels in Y
DET CHIP PSZX = 15.0 / [um] Size of pixel in X
DET CHIP PSZY = 15.0 / [um] Size of pixel in Y
DET CHIP RGAP = 0.0 / Angle of gap between chips
DET CHIP X = int / X location in array
DET CHIP XGAP = 0.0 / Gap after chips along x
DET CHIP Y = int / Y location in array
DET CHIP YGAP = 0.0 / Gap after chip along y
DET CHIPS = 24 / Number of chips in the mosaic
DET DID = 'ESO-VLT-DIC.NGCDCS,ESO-VLT-DIC.NGCCON' / Used dictionaries
DET DIT1 = float / [s] Actual subintegration time
DET DKTM = float / [s] Dark current time
DET EXP NO = int / Unique exposure ID number
DET EXP TYPE = str / Exposure type
DET NAME = 'MUSE-NGCOPT' / Name of detector system
DET NDIT = 1 / Number of Sub-Integrations
DET OUTPUTS = 96 / Number of outputs
DET READ CURID = 1 / Used readout mode id
DET READ CURNAME = 'SCI1.0' / Used readout mode name
DET UIT1 = float / [s] User defined subintegration time
DET2 CHIP1 NX = 1024 / Physical active pixels in X
DET2 CHIP1 NY = 1024 / Physical active pixels in Y
DET2 CHIP1 X = 1 / X location in array
DET2 CHIP1 Y = 1 / Y location in array
DET2 SOFW MODE = 'NORMAL' / Software operational mode
DET2 TEMP MSG = 'Temperature monitoring system disabled' / Temperature monitoring message
DET2 TEMP1 DESC = 'Case' / Temperature sensor description
DET2 TEMP1 VAL = float / [K] Temperature sensor numeric value
DET2 TEMP2 DESC = 'Chip' / Temperature sensor description
DET2 TEMP2 VAL = float / [K] Temperature sensor numeric value
DET2 WIN1 BINX = 1 / Binning factor along X
DET2 WIN1 BINY = 1 / Binning factor along Y
DET2 WIN1 NX = 20 / # of pixels along X
DET2 WIN1 NY = 20 / # of pixels along Y
DET2 WIN1 ST = False / If T, window enabled
DET2 WIN1 STRX = 1 / Lower left pixel in X
DET2 WIN1 STRY = 1 / Lower left pixel in Y
DET2 WIN1 UIT1 = 8.227 / user defined subintegration time
DET2 WIN2 BINX = 1 / Binning factor along X
DET2 WIN2 BINY = 1 / Binning factor along Y
DET2 WIN2 NX = 20 / # of pixels along X
DET2 WIN2 NY = 20 / # of pixels along Y
DET2 WIN2 ST = False / If T, window enabled
DET2 WIN2 STRX = 1 / Lower left pixel in X
DET2 WIN2 STRY = 1 / Lower left pixel in Y
AOS HO LOOP ST = bool / High-order loop status
AOS IR LOOP ST = bool / Infrared low-order loop status
AOS TT LOOP ST = bool / Tip-tilt loop status
ADA ABSROT END = float / [deg] Abs rot angle at exp end
ADA ABSROT PPOS = str / sign of probe position
ADA ABSROT START = float / [deg] Abs rot angle at exp start
ADA GUID DEC = float / [deg] {} Guide star DEC J2000
ADA GUID RA = float / [deg] {} Guide star RA J2000
ADA GUID STATUS = str / Status of autoguider
ADA POSANG = float / [deg] Position angle at start
OCS DET IMGNAME = str / Data File Name.
OCS IPS PIXSCALE = float / [arcsec/pixel] Pixel scale
OCS SGS AG FWHMX AVG = float / [arcsec] AG FWHM X mean value
OCS SGS AG FWHMX MAX = float / [arcsec] AG FWHM X maximum value
OCS SGS AG FWHMX MED = float / [arcsec] AG FWHM X median value
OCS SGS AG FWHMX MIN = float / [arcsec] AG FWHM X minimum value
OCS SGS AG FWHMX RMS = float / [arcsec] AG FWHM X RMS value
OCS SGS AG FWHMY AVG = float / [arcsec] AG FWHM Y mean value
OCS SGS AG FWHMY MAX = float / [arcsec] AG FWHM Y maximum value
OCS SGS AG FWHMY MED = float / [arcsec] AG FWHM Y median value
OCS SGS AG FWHMY MIN = float / [arcsec] AG FWHM Y minimum value
OCS SGS AG FWHMY RMS = float / [arcsec] AG FWHM Y RMS value
OCS SGS ALGO NAME = 'CORRELATOR' / Centering method
OCS SGS ALGO WIN SCALE = 6.0 / Factor for window size
OCS SGS ALGO WIN SIZE = 59 / [pix] Window size
OCS SGS FLUX AVG = float / [ADU] SGS flux mean value
OCS SGS FLUX MAX = float / [ADU] SGS flux maximum value
OCS SGS FLUX MED = float / [ADU] SGS flux median value
OCS SGS FLUX MIN = float / [ADU] SGS flux minimum value
OCS SGS FLUX RMS = float / [ADU] SGS flux RMS value
OCS SGS FLUX RMSPRC = float / [%] SGS flux RMS percentage value
OCS SGS FWHM AVG = float / [arcsec] SGS FWHM mean value
OCS SGS FWHM MAX = float / [arcsec] SGS FWHM maximum value
OCS SGS FWHM MED = float / [arcsec] SGS FWHM median value
OCS SGS FWHM MIN = float / [arcsec] SGS FWHM minimum value
OCS SGS FWHM RMS = float / [arcsec] SGS FWHM RMS value
OCS SGS LOOP CLOSED PRCTG = float / SGS closed loop percentage
OCS SGS LOOP GAIN = 0.95 / SGS loop gain
OCS SGS LOOP MODE = 2 / SGS loop mode
OCS SGS LOOP MODENAME = 'GUIDING' / SGS loop mode name
OCS SGS LOOP PERIOD = 121 / [s] SGS loop period
OCS SGS LOOP ST = bool / SGS loop status
OCS SGS NOBJ = int / Nb of objects for slow-guiding
OCS SGS OFFSET DECAVG = float / [arcsec] SGS delta offset mean value
OCS SGS OFFSET DECMAX = float / [arcsec] SGS delta offset maximum value
OCS SGS OFFSET DECMED = float / [arcsec] SGS delta offset median value
OCS SGS OFFSET DECMIN = float / [arcsec] SGS delta offset minimum value
OCS SGS OFFSET DECRMS = float / [arcsec] SGS delta offset RMS value
OCS SGS OFFSET DECSUM = float / [arcsec] SGS cumulated delta offset
OCS SGS OFFSET ENABLED = True / SGS offsetting status
OCS SGS OFFSET RAAVG = float / [arcsec] SGS alpha offset mean value
OCS SGS OFFSET RAMAX = float / [arcsec] SGS alpha offset maximum value
OCS SGS OFFSET RAMED = float / [arcsec] SGS alpha offset median value
OCS SGS OFFSET RAMIN = float / [arcsec] SGS alpha offset minimum value
OCS SGS OFFSET RARMS = float / [arcsec] SGS alpha offset RMS value
OCS SGS OFFSET RASUM = float / [arcsec] SGS cumulated alpha offset
OCS SGS OFFSET THRMAX = 0.4 / [arcsec] Alpha/Delta max offset threshold
OCS SGS OFFSET THRMIN = 0.02 / [arcsec] Alpha/Delta min offset threshold
OCS SGS PIXSCALE X = 0.093 / [arcsec/pix] X pixel scale of SGS
OCS SGS PIXSCALE Y = 0.0895 / [arcsec/pix] Y pixel scale of SGS
OCS SGS REF NBIMG = 1 / Number of images for reference image
OCS SGS REF SAVE = 'MUSE_SGS_REF_START_POS.fits' / SGS reference file name
OCS SGS REJECT PRCTG = float / Image rejection ratio
OCS TEL ACCESS = 'NORMAL' / Sub-system access mode.
SEQ OFFSET COORDS = 'SKY' / Offset coordinate type
SEQ OFFSET CUM ALPHA = float / [arcsec] Cumulative alpha offset
SEQ OFFSET CUM DELTA = float / [arcsec] Cumulative delta offset
SEQ OFFSET REL ALPHA = float / [arcsec] Relative alpha offset
SEQ OFFSET REL DELTA = float / [arcsec] Relative delta offset
"""


def sensor_number(detector: int) -> int:
    """Number of the sensors (``INS PRESi``, ``INS TEMPi``) of the cryostat of a detector 1..24."""
    return 20 + detector if detector % 2 else 43 + detector


def _serial(*what: object) -> str:
    return "0000" + hashlib.sha256(" ".join(map(str, what)).encode()).hexdigest()[:8].upper()


def _repeated() -> list[str]:
    lines = []
    for i, (channel, vessel, slicer, preamplifier, grating) in enumerate(WIRING, 1):
        lines += [
            f"INS IFU{i} CABLE ID = '-1' / Detector cable ID",
            f"INS IFU{i} CHAN = {channel} / Integral Field Unit channel",
            f"INS IFU{i} DV ID = '{vessel}' / Detector Vessel ID",
            f"INS IFU{i} ID = '{i:02d}' / Integral Field Unit ID",
            f"INS IFU{i} ISS ID = '{slicer}' / Image Slicer System ID",
            f"INS IFU{i} PREAMP ID = '{preamplifier}' / Detector cable ID",
            f"INS IFU{i} SPS ID = '{i:02d}' / Spectograph System ID",
            f"INS IFU{i} VPHG ID = '{grating}' / Volume Phase Holographic Grating ID",
            f"INS PRES{sensor_number(i)} VAL = float / [mBar] Detector {i} pressure",
            f"INS TEMP{sensor_number(i)} VAL = float / [K] Detector {i} temperature",
        ]
    for i, lamp in enumerate(LAMPS, 1):
        n = 4 * (i - 1)
        lines += [
            f"INS SENS{n + 1} ID = 'CURL{i}' / Sensor ID",
            f"INS SENS{n + 1} NAME = 'INS LAMP{i} Current' / Sensor common name",
            f"INS SENS{n + 1} VAL = int / {lamp[6]} Lamp #{i} current value",
            f"INS SENS{n + 2} ID = 'TTL{i}' / Sensor ID",
            f"INS SENS{n + 2} NAME = 'INS LAMP{i} Total Time' / Sensor common name",
            f"INS SENS{n + 2} VAL = int / [h] Lamp #{i} total time",
            f"INS SENS{n + 3} ID = 'OVTL{i}' / Sensor ID",
            f"INS SENS{n + 3} NAME = 'INS LAMP{i} Over Temp. Alarm' / Sensor common name",
            f"INS SENS{n + 3} VAL = False / Lamp #{i} over temperature alarm",
            f"INS SENS{n + 4} ID = 'ALTL{i}' / Sensor ID",
            f"INS SENS{n + 4} NAME = 'INS LAMP{i} Temp. Latched Alarm' / Sensor common name",
            f"INS SENS{n + 4} VAL = False / Lamp #{i} over temperature latched alarm",
            f"INS SHUT{i} ID = 'CSH{i}' / Lamp shutter ID",
            f"INS SHUT{i} NAME = '{lamp[0]}' / Lamp shutter name",
            f"INS SHUT{i} ST = bool / Lamp shutter open",
            f"INS LAMP{i} ID = 'CLX{i}' / Lamp ID",
            f"INS LAMP{i} NAME = 'CU-LAMP{i}' / Lamp name",
            f"INS LAMP{i} ST = bool / Lamp activated",
            f"INS LAMP{i} SWSIM = False / If T, lamp simulated",
            f"SEQ LAMP{i} ONTIME = float / [s] Lamp #{i} time since switched on",
        ]
    for i in range(1, 5):
        # serial numbers are made up
        for board in range(1, 7):
            name = f"DET DEV{i} BOARD{board}"
            lines += [
                f"{name} BCKPL = '{_serial(i)}' / Serial no (backplane)",
                f"{name} SERNO = '{_serial(i, board, 'board')}' / Serial no (board)",
                f"{name} TRANS = '{_serial(i, board, 'transition')}' / Serial no (transition board)",
                f"{name} TYPE = 'FEB' / Type",
                f"{name} VERSION = 1 / Version",
            ]
            if i == 1:
                lines.append(f"{name} REV = '5.6.4' / Revision")
        shutter = ("Bonn-01", "Bonn") if i == 1 else (f"eso-{i:02d}", "nostatus")
        lines += [
            f"DET DEV{i} CHIPS = 6 / Number of chips in the mosaic",
            f"DET DEV{i} EXP RDTTIME = float / [s] Image readout time",
            f"DET DEV{i} EXP XFERTIM = float / [s] Image transfer time",
            f"DET DEV{i} ID = 'MUSE-NGC{i}' / Detector system Id",
            f"DET DEV{i} OUTPUTS = 24 / Number of outputs",
            f"DET DEV{i} REV = '3.1.1' / Revision",
            f"DET DEV{i} SHUT ID = '{shutter[0]}' / Shutter unique identifier",
            f"DET DEV{i} SHUT TMCLOS = float / [s] Time taken to close shutter",
            f"DET DEV{i} SHUT TMOPEN = float / [s] Time taken to open shutter",
            f"DET DEV{i} SHUT TYPE = '{shutter[1]}' / Shutter type",
            f"DET DEV{i} SOFW BASE = '262185' / Base software version",
            f"DET DEV{i} SOFW DETMOD = '261749+' / Detector module revision",
            f"DET DEV{i} SOFW MODE = 'NORMAL' / Software operational mode",
            f"DET DEV{i} SOFW OPT = '262185' / Optical software version",
        ]
    for i in range(1, 11):
        lines += [
            f"OCS SGS OBJ{i} FLUX = float / [ADU] Flux of the SGS object #i",
            f"OCS SGS OBJ{i} REJECTED = bool / Rejected flag of the SGS object #i",
            f"OCS SGS OBJ{i} USED PRCTG = float / % of time SGS object #i has been used",
            f"OCS SGS OBJ{i} X = float / X-position of the SGS object #i",
            f"OCS SGS OBJ{i} Y = float / Y-position of the SGS object #i",
        ]
    for i in range(1, 5):
        lines += [
            f"DET OUT{i} CONAD = float / [e-/ADU] Conversion ADUs to electrons",
            f"DET OUT{i} GAIN = float / [ADU/e-] Conversion electrons to ADUs",
            f"DET OUT{i} ID = '{'EFGH'[i - 1]}' / Output ID as from manufacturer",
            f"DET OUT{i} INDEX = {i} / Output index",
            f"DET OUT{i} NAME = 'NO{i}' / Description of output",
            f"DET OUT{i} NX = 2048 / Valid pixels along X",
            f"DET OUT{i} NY = 2056 / Valid pixels along Y",
            f"DET OUT{i} OVSCX = 32 / Overscan region in X",
            f"DET OUT{i} OVSCY = 32 / Overscan region in Y",
            f"DET OUT{i} PRSCX = 32 / Prescan region in X",
            f"DET OUT{i} PRSCY = 32 / Prescan region in Y",
            f"DET OUT{i} RON = float / [e-] Readout noise per output",
            f"DET OUT{i} X = {4096 if i in (2, 3) else 1} / X location of output",
            f"DET OUT{i} Y = {4112 if i > 2 else 1} / Y location of output",
        ]
    return lines


@cache
def template() -> dict[str, TemplateCard]:
    """All cards by keyword (without ``ESO``); the header has them group by group, in each by alphabet."""
    lines = [*_TEXT.strip().splitlines(), *_repeated()]
    cards = {}
    for line in lines:
        keyword, _, rest = line.partition(" = ")
        text, _, comment = rest.partition(" / ")
        if text in _TYPES:
            cards[keyword] = TemplateCard(None, _TYPES[text], comment)
        else:
            value = ast.literal_eval(text)
            cards[keyword] = TemplateCard(value, type(value), comment)
    groups = {name: i for i, name in enumerate(GROUPS)}
    return dict(sorted(cards.items(), key=lambda card: (groups[card[0].split()[0]], card[0].split())))
